"""Estimates of time and memory: of training, of sampling and of metrics."""
