"""LightningModules: the methods, each usable in anybody's Trainer with anybody's backbone and data."""
