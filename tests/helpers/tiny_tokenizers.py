"""Small tokenizers of every kind with random weights, for the tests of several modules."""

import jax
import jax.numpy as jnp
import numpy as np

from musiclm_jax import checkpoints
from musiclm_jax.models import (
    melody,
    mulan,
    quantizers,
    registry,
    resnet,
    soundstream,
    spectrogram,
    w2v_bert,
)

DIM = 16
CONFIGS = {
    'soundstream': soundstream.SoundStreamConfig(
        channels=2, strides=(6, 8, 10), channel_multipliers=(1, 1, 2), dilations=((1,),) * 3,
        dim=8, num_quantizers=6, codebook_size=16),
    'w2v_bert': w2v_bert.W2vBertConfig(
        conv_channels=2, emb_dim=DIM, num_heads=2, head_dim=8, mlp_dim=16, contrastive_layers=1,
        prediction_layers=1, feature_layer=1, num_codes=8, code_dim=8),
    'semantic_quantizer': quantizers.KMeansConfig(dim=DIM, num_centroids=32),
    'mulan': mulan.MulanConfig(
        resnet=resnet.ResNetConfig(stage_sizes=(1,), widths=(4,), stem_width=4, norm='group'),
        text=mulan.TextConfig(mulan.EncoderConfig(1, 8, 1, 8), vocab_size=16, max_length=8),
        embedding_dim=DIM),
    'mulan_quantizer': quantizers.ResidualVectorQuantizerConfig(
        dim=DIM, num_quantizers=3, codebook_size=8),
}
MELODY_CONFIGS = {
    'melody': melody.MelodyConfig(
        encoder=mulan.EncoderConfig(num_layers=1, emb_dim=8, num_heads=1, mlp_dim=8),
        mel=spectrogram.MelConfig(
            sample_rate=24_000, n_fft=512, win_length=512, hop_length=2400, num_mels=8),
        window_seconds=2.0, hop_seconds=1.0, embedding_dim=DIM),
    'melody_quantizer': quantizers.ResidualVectorQuantizerConfig(
        dim=DIM, num_quantizers=2, codebook_size=8),
}


def random_variables(name, config):
  """Random values everywhere, so that codebooks hold more than zeros."""
  leaves, tree = jax.tree.flatten(registry.variable_shapes(name, config))
  rng = np.random.default_rng(0)
  return jax.tree.unflatten(tree, [
      jnp.asarray(np.abs(rng.standard_normal(leaf.shape)) ** 0.5 * rng.choice([-.3, .3], leaf.shape)
                  if leaf.shape else 1, leaf.dtype) for leaf in leaves])


def export(path, configs=CONFIGS) -> dict[str, str]:
  """Writes PATH/{soundstream,w2v_bert,..}; returns the fingerprints."""
  fingerprints = {}
  for name, config in configs.items():
    variables = random_variables(name, config)
    if name == 'semantic_quantizer':
      variables['codebooks']['std'] = jnp.ones(DIM)
    fingerprints[name] = checkpoints.export_model(path / name, name, config, variables)
  return fingerprints
