"""LightningModules: the methods, each usable with any Trainer, backbone and data."""
