"""LightningDataModules, whose batches are (images in [-1, 1], labels or captions)."""
