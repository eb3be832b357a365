"""The methods as LightningModules, each usable with any Trainer, backbone and data."""
