"""From text to batches; imports no jax."""
