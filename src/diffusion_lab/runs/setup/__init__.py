"""Setup: configs and run folders -> checked settings, and the objects for training, sampling, evaluation and edits."""
