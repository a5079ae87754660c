"""SeqIO tasks over waveform records and token records."""

import musiclm_jax.data  # noqa: F401  (before any module here imports TensorFlow)
