"""One module a command, and the entry that all share."""
