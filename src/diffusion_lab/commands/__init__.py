"""Command modules, and the entry point and the logging that all commands share."""
