"""Predict with a model from any SOURCE: rows in, rows out, batched by length, order kept."""
