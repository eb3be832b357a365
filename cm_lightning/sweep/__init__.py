"""W&B sweep files, run by ``wandb agent`` or by ``cm-lightning sweep`` on this machine alone."""
