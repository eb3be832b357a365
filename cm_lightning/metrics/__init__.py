"""How good the samples are: feature extractors and what is measured with them."""
