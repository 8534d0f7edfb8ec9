"""Compile a run for machines that are not there, and say what it will cost."""
