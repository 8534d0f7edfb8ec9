"""The encoder and its heads: Flax modules, independent of mesh, data set and flags."""
