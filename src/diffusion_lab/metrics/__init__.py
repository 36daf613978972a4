"""Numbers about images. Each says in its name how it was made."""
