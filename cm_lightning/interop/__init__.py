"""Reading the networks of OpenAI, EDM and diffusers. Nothing from a file is executed."""
