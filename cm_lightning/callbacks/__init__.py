"""Callbacks that follow a run: averaged weights, sample grids, quality, speed."""
