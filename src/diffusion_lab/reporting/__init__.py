"""Progress displays, image grids, image files and plots, made from plain data: numbers, arrays and strings."""
