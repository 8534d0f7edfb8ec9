"""Prediction with any model: JSON rows in, JSON rows out, in order, batched by length."""
