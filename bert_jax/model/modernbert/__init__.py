"""ModernBERT: layers, names, config fields, FLOPs and the NumPy reference."""
