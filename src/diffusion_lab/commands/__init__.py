"""The commands, one module each, and the entry point, logging and memory settings that the commands share."""
