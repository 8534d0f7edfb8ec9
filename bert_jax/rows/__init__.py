"""The layout of training records: packing, segments and positions, truncation, special ids."""
