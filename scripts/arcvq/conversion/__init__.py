"""Weights of public code => tokenizer folders; codebooks from features or from trained tokenizers."""
