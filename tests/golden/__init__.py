"""Golden facts: what the program computed when a person last looked, so that a change of it shows in a diff.

`losses/` holds the first losses of tiny runs, `programs/` what the TPU compiler says about every config. `python -m
tests.golden --write` regenerates both.
"""
