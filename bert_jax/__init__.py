"""Pre-train BERT from raw text on TPU pods with JAX, fine-tune it, hand it to the HuggingFace ecosystem."""
