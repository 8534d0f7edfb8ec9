"""Pallas kernels for TPUs and GPUs. `attention.py` and `residual_norm.py` choose between them and the plain forms."""
