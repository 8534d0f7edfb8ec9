"""Config files: each says in its first lines what it is for and how to start it."""
