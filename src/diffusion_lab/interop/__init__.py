"""Checkpoints and folders of other code, read and written: one module per format. Foreign files are data, and no code
in them is run.
"""
