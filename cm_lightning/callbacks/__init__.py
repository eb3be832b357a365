"""What watches or follows a run: averaged weights, sample grids, quality, speed."""
