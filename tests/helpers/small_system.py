"""A whole MusicLM of small random models, for tests of the plumbing, not of the music."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import tiny_tokenizers

from musiclm_jax import checkpoints, text, token_layout
from musiclm_jax.models import mulan, quantizers, resnet, soundstream, transformer

LAYOUT = token_layout.TokenLayout(
    mulan=token_layout.TokenStream('mulan', 2, 8, 0),
    semantic=token_layout.TokenStream('semantic', 1, 16, 25),
    acoustic=token_layout.TokenStream('acoustic', 3, 16, 50),
    coarse_levels=2,
    melody=token_layout.TokenStream('melody', 2, 8, 1, window_seconds=2),
)
SECONDS = {'semantic': 4, 'coarse': 2, 'fine': 1}
CODEC = soundstream.SoundStreamConfig(
    channels=2, dim=8, channel_multipliers=(1, 1, 2, 2), dilations=((1,),) * 4, num_quantizers=3,
    codebook_size=16)
DECODER = transformer.DecoderConfig(
    num_layers=1, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=16, scan_layers=False)


def _export(directory, name, config, module, *inputs, **options):
  rngs = {key: jax.random.key(1) for key in ('params', 'dropout')}
  method = options.pop('method', None)
  init = jax.jit(lambda: module.init(rngs, *inputs, method=method))  # eagerly it takes long
  variables = dict(nn.unbox(init()))
  if 'codebooks' in variables:  # they start empty: training fills them
    variables['codebooks'] = jax.tree.map(
        lambda x: jax.random.normal(jax.random.key(2), x.shape) if x.ndim > 1 else x,
        variables['codebooks'])
  return checkpoints.export_model(directory / name, name, config, variables, **options)


def _export_semantic_tokenizer(directory) -> dict[str, str]:
  configs = {
      'w2v_bert': tiny_tokenizers.CONFIGS['w2v_bert'],
      'semantic_quantizer': quantizers.KMeansConfig(
          dim=tiny_tokenizers.DIM, num_centroids=LAYOUT.semantic.codebook_size)}
  return {
      name: checkpoints.export_model(
          directory / name, name, config, tiny_tokenizers.random_variables(name, config))
      for name, config in configs.items()}


def export(directory: pathlib.Path, condition_dropout: float = 0.0) -> pathlib.Path:
  """Writes all models that generation needs and returns the directory."""
  vocab = directory / 'vocab.txt'
  text.train_vocabulary(['slow calm piano music', 'loud fast rock with drums'], 200, str(vocab))
  size = len(vocab.read_text().split('\n')) - 1
  encoder = mulan.EncoderConfig(num_layers=1, emb_dim=16, num_heads=2, mlp_dim=16)
  mulan_config = mulan.MulanConfig(
      resnet=resnet.ResNetConfig(stage_sizes=(1, 1), stem_width=4, widths=(4, 8), norm_groups=2, norm='group'),
      text=mulan.TextConfig(encoder=encoder, vocab_size=size, max_length=16), embedding_dim=8)
  rvq = quantizers.ResidualVectorQuantizerConfig(dim=8, num_quantizers=2, codebook_size=8)
  _export(directory, 'soundstream', CODEC, soundstream.SoundStream(CODEC), jnp.zeros((1, 960)))
  fingerprints = {
      **_export_semantic_tokenizer(directory),
      **tiny_tokenizers.export(directory, tiny_tokenizers.MELODY_CONFIGS),
      'mulan_quantizer': checkpoints.export_model(
          directory / 'mulan_quantizer', 'mulan_quantizer', rvq,
          {'codebooks': quantizers.codebook_variables(
              jax.random.normal(jax.random.key(0), (2, 8, 8)))}),
  }
  fingerprints['mulan'] = _export(
      directory, 'mulan', mulan_config, mulan.Mulan(mulan_config), jnp.zeros((1, 240_000)),
      jnp.ones((1, 8), jnp.int32), text_files={'vocab.txt': vocab.read_text()})
  codec = checkpoints.load_model(directory / 'soundstream')
  fingerprints['soundstream'] = checkpoints.token_fingerprint(codec, LAYOUT.acoustic.num_levels)
  for name, seconds in SECONDS.items():
    config = dataclasses.replace(DECODER, vocab_size=LAYOUT.stage(name, seconds).vocab_size)
    _export(directory, name, config, transformer.Decoder(config), jnp.ones((1, 4), jnp.int32),
            extra={'seconds': seconds, 'condition_dropout': condition_dropout})
    token_layout.write_layout(directory / name, LAYOUT, fingerprints)
  return directory
