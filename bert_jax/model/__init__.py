"""The encoder and its heads: Flax modules that know no mesh, no data set and no flag."""
