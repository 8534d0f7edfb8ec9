"""What only pre-training needs: masking, the objective, the run."""
