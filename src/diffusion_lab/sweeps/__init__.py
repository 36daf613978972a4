"""Sweeps: what is left to run, where, and the table of results."""
