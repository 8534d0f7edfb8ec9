"""Kernels of our own, each chosen by the file of `model` that it serves and by no other."""
