"""The generic trainer: state, step, loop, optimisers, checkpoints, writers."""
