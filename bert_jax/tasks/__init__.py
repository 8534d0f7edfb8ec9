"""Tasks: read the official files, build instances, compute the official metrics. Tasks know output kinds, no model."""
