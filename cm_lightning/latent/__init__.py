"""Text-to-image in latent space, on diffusers, transformers and peft: ``pip install 'cm-lightning[lcm]'``."""
