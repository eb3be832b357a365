"""LightningDataModules. Every batch is (images in [-1, 1], labels or captions)."""
