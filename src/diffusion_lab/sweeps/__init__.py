"""Sweeps: planning, execution on one machine or on Slurm, and the table of results."""
