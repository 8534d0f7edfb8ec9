"""Kinds of output: what a task's head computes, learns and answers; one file a kind, all of them in `table.py`."""
