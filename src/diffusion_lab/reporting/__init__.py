"""Progress, image grids and plots. Receives plain data."""
