"""Checkpoints of other code: one module per format. Foreign files are data; no code in them is run."""
