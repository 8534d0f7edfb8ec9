"""Bring models in and out: HuggingFace folders, TF1 checkpoints, workdirs; all names derive from one table."""
