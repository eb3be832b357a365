"""The quality of samples: feature extractors, and the measures on their features."""
