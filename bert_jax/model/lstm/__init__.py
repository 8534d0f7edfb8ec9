"""LSTM language models, one per direction, and the pair of two whose states are features (ELMo, Peters et al. 2018)."""
