"""Checkpoints and folders of other code: what they contain, in the names and settings of this package, and back."""
