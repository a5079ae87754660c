"""MusicLM in JAX and Flax: a sentence in, 24 kHz music out."""
