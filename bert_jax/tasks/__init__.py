"""The tasks of the paper: read official files, featurise, score officially. Knows the model only through heads."""
