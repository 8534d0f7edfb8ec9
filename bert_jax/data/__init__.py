"""From text to batches of rows; imports no jax."""
