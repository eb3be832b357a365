"""The mathematics of consistency models in plain torch: no Lightning, no files, no global state."""
