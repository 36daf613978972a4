"""Progress, image grids, image files and plots. The functions receive plain data: numbers, arrays and strings."""
