"""Pre-training: masking, the objective, evaluation, the run."""
