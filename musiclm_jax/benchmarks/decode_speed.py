"""L5. How fast a run's language model decodes on this machine, beside the memory it has to read."""

import dataclasses
import math
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from musiclm_jax import errors, partitioning, sampling, token_layout
from musiclm_jax.benchmarks import devices, kernel_times, random_values
from musiclm_jax.models import transformer
from musiclm_jax.objectives import base, language_model


@dataclasses.dataclass(frozen=True)
class DecodeSpeed:
  """Of `tokens` ids drawn after `prefix` (with BOS) for every example.

  seconds: of each run, prefill and all tokens; prefill_seconds: of runs for the first frame only.
  The tokens after that frame make `token_seconds`, and for one of them, of all examples, a device
  reads weight_bytes (all matrices, of the output tables one level's) and cache_bytes (keys and
  values of the positions so far, as long as they are on average).
  """

  stage: str
  device: devices.Device
  batch_size: int
  prefix: int
  tokens: int
  num_levels: int
  num_params: int
  weights_dtype: str
  cache_dtype: str
  temperature: float
  seconds: list[float]
  prefill_seconds: list[float]
  first_seconds: float
  weight_bytes: int
  cache_bytes: float
  kernels: kernel_times.KernelTimes | None = None

  @property
  def tokens_per_second(self) -> float:
    """Returns tokens/s of all examples together, prefill counted in."""
    return self.batch_size * self.tokens / statistics.median(self.seconds)

  @property
  def token_seconds(self) -> float:
    """Returns seconds of a token after prefill, the difference of two medians: of fast ones noise."""
    spent = statistics.median(self.seconds) - statistics.median(self.prefill_seconds)
    return spent / (self.tokens - self.num_levels)

  @property
  def bandwidth_share(self) -> float | None:
    """Returns the time that reading takes at full bandwidth over token_seconds, None if not known."""
    if self.device.bandwidth is None or self.token_seconds <= 0:
      return None
    return (self.weight_bytes + self.cache_bytes) / self.device.bandwidth / self.token_seconds

  def as_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self) | {
        'tokens_per_second': self.tokens_per_second,
        'tokens_per_second_per_example': self.tokens_per_second / self.batch_size,
        'token_seconds': self.token_seconds, 'bandwidth_share': self.bandwidth_share,
        'kernels': self.kernels and self.kernels.as_json()}

  def describe(self) -> str:
    """Returns the figures as lines of text."""
    share = ("the device's bandwidth is not known" if self.device.bandwidth is None
             else 'its time is within the noise' if self.bandwidth_share is None
             else f'{100 * self.bandwidth_share:.1f}% of the bandwidth')
    median = statistics.median(self.seconds)
    return '\n'.join([
        f'{self.stage}: {self.num_params:,} parameters, weights {self.weights_dtype}, cache '
        f'{self.cache_dtype}, batch {self.batch_size}, on {self.device.count} x {self.device.kind}',
        f'seconds for {self.tokens} tokens after {self.prefix}, median (least to most) of '
        f'{len(self.seconds)}: {devices.spread(self.seconds, digits=3)}; for the first '
        f'{self.num_levels}: {devices.spread(self.prefill_seconds, digits=3)}; compiling took about '
        f'{max(self.first_seconds - median, 0):.1f} s more',
        f'{self.tokens_per_second:,.1f} tokens/s, of each example '
        f'{self.tokens_per_second / self.batch_size:,.1f}',
        f'a token after prefill: {1000 * self.token_seconds:.3f} ms, reads '
        f'{self.weight_bytes / 2**20:,.1f} MiB of weights and {self.cache_bytes / 2**20:,.1f} MiB of '
        f'cache: {share}',
        *([self.kernels.describe()] if self.kernels else []),
    ])


class Decoding:
  """A stage's model with random weights, made ready once and timed often."""

  def __init__(self, config: transformer.DecoderConfig, stage: token_layout.StageLayout,
               weights_dtype: str = '', mesh_shape: tuple[int, int, int] = (-1, 1, 1)):
    self.config, self.stage = config, stage
    self.mesh = partitioning.make_mesh(mesh_shape)
    init = lambda: transformer.Decoder(config).init(
        jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']
    shardings = partitioning.param_shardings(jax.eval_shape(init), self.mesh)
    params = jax.jit(lambda: nn.unbox(init()), out_shardings=shardings)()
    self.num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    with partitioning.activate(self.mesh):
      self._sampler = sampling.Sampler(config, params, stage, weights_dtype)
    self.weights_dtype = weights_dtype or config.dtype
    self.cache_dtype = self._sampler.static.cache_dtype

  def seconds(self, batch_size: int, tokens: int, temperature: float = 1.0, seed: int = 0) -> float:
    """Returns seconds for `tokens` ids after a random prefix, whole frames of them."""
    stage = self.stage
    prefix = jnp.asarray(stage.flatten_prefix(random_values.codes(stage, batch_size)))
    with partitioning.activate(self.mesh):
      start = time.perf_counter()
      self._sampler.sample(prefix, jax.random.key(seed), temperature,
                           tokens // stage.target.num_levels).block_until_ready()
      return time.perf_counter() - start

  def token_bytes(self, batch_size: int, tokens: int) -> tuple[int, float]:
    """Returns (weight_bytes, cache_bytes) of DecodeSpeed."""
    variables, levels, c = self._sampler.variables, self.stage.target.num_levels, self.config
    held = lambda tree: sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                            for leaf in jax.tree.leaves(tree))
    position = 2 * c.num_layers * c.num_heads * c.head_dim * jnp.dtype(self.cache_dtype).itemsize
    # Id i of `tokens`, from 1, looks at P + i positions: BOS, the prefix, the i - 1 ids before.
    live = self.stage.prefix_length + (levels + 1 + tokens) / 2
    return (held(variables['served']) + held(variables['tables']) // levels,
            batch_size * live * position / self.mesh.size)


def check(objective: base.Objective, tokens: int) -> None:
  """Raises a UserError unless `tokens` new ids are two or more whole frames of the run's stage."""
  if not isinstance(objective, language_model.LanguageModelObjective):
    raise errors.UserError(
        f'decoding: wanted a language model, the run trains {objective.model_name}')
  stage = objective.stage_layout
  levels = stage.target.num_levels
  if tokens % levels or not 2 * levels <= tokens <= stage.target_length:
    raise errors.UserError(
        f'tokens is {tokens}, wanted a multiple of the {levels} levels of the {stage.name} stage, '
        f'from {2 * levels} to the {stage.target_length} of {stage.seconds:g} s')


def measure(decoding: Decoding, batch_size: int, tokens: int, temperature: float = 1.0,
            repeats: int = 5, kernels: bool = False) -> DecodeSpeed:
  """Returns how fast `tokens` ids are drawn for each of `batch_size` examples; see `check`.

  kernels: profiles one run more, prefill and all tokens.
  """
  stage, levels = decoding.stage, decoding.stage.target.num_levels
  first = decoding.seconds(batch_size, tokens, temperature)
  decoding.seconds(batch_size, levels, temperature)  # compiles what is left
  seconds, prefill = [], []
  for seed in range(repeats):
    seconds.append(decoding.seconds(batch_size, tokens, temperature, seed))
    prefill.append(decoding.seconds(batch_size, levels, temperature, seed))
  profile = kernel_times.measure(
      lambda: decoding.seconds(batch_size, tokens, temperature), tokens, 'token') if kernels else None
  return DecodeSpeed(
      stage.name, devices.of(decoding.mesh), batch_size, stage.prefix_length + 1, tokens, levels,
      decoding.num_params, decoding.weights_dtype, decoding.cache_dtype, temperature, seconds,
      prefill, first, *decoding.token_bytes(batch_size, tokens), profile)
