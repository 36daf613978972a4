"""Settings of runs and measurements: the used and the measured ones, differences between configs, and paths."""
