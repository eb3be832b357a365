"""W&B sweep files, run by ``wandb agent`` or, on this machine without an account, by ``cm-lightning sweep``."""
