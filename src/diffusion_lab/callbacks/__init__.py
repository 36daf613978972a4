"""When things happen during training, never how."""
