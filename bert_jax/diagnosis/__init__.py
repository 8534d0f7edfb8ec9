"""What `bert-jax doctor` examines on a new machine: a file per check, a table of checks, one block to paste."""
