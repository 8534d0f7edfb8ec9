"""Import and export of models: HuggingFace folders, TF1 checkpoints, workdirs. All names derive from one table."""
