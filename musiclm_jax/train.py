"""L4. The training loop, for every model: mesh, data, state, restore, loop.

WORKDIR afterwards holds:
  checkpoints/<step>/  state and data position; the run goes on from the last one
  metrics.csv          step,name,value
  tensorboard/         scalars, audio and spectrograms
  model.json           what tools/export.py needs beside a checkpoint
  config.gin           the configuration, when the run came from gin
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from musiclm_jax import (
    checkpoints,
    errors,
    global_batches,
    metric_writers,
    partitioning,
    run_files,
    train_state,
    train_step,
    training_checkpoints,
)
from musiclm_jax.objectives import base

log = logging.getLogger(__name__)

_EVAL_SEED = 0  # held-out batches are the same in every run and at every step


class TrainingDiverged(errors.UserError):
  """The loss or the gradient is not finite: names the step and the last good checkpoint."""


class TrainingCollapsed(errors.UserError):
  """The objective sees a trivial solution in its metrics: names the step and the last checkpoint."""


def train(
    *,
    workdir: str,
    objective: base.Objective,
    dataset: base.Dataset,
    optimizer: optax.GradientTransformation,
    total_steps: int,
    batch_size: int,
    eval_dataset: base.Dataset | None = None,
    evaluations: Sequence[base.Evaluation] = (),
    seed: int = 0,
    init_from: str | None = None,
    mesh_shape: tuple[int, int, int] = (-1, 1, 1),
    microbatches: int = 1,
    average_decay: float | None = None,
    log_every: int = 100,
    eval_every: int = 1000,
    eval_batches: int = 8,
    checkpoint_every: int = 1000,
    max_to_keep: int | None = 3,
    export_dir: str | None = None,
    export_dtype: str = 'float32',
    compilation_cache: str | None = None,
    config_text: str | None = None,
) -> train_state.TrainState:
  """Returns the state after `total_steps`; goes on from the last checkpoint in `workdir`.

  SIGTERM and SIGINT, sent to any of the hosts, save a checkpoint and return early.  A resumed run
  is the same run bit for bit, given the same dataset, seed, batch size, mesh and hosts; on another
  mesh or with other hosts, see training_checkpoints.  Raises TrainingDiverged or TrainingCollapsed
  (see Objective.check_metrics) instead of training on.

  Args:
    workdir: local or gs:// directory of the run.
    objective: the model and its loss.
    dataset: training batches.
    optimizer: an optimizer of optimizers.py, or any optax transformation.
    total_steps: when the run is done.
    batch_size: examples per step, over all hosts.
    eval_dataset: held-out batches, or None.
    evaluations: what else to measure, each at steps of its own and at the end.
    seed: of the parameters, the data order and every random draw.
    init_from: directory of an exported model whose weights a new run starts from; a run that
      already has a checkpoint goes on from that.
    mesh_shape: devices along ('data', 'fsdp', 'model'); -1 takes what is left.
    microbatches: parts that a batch is computed in, one after the other, for less memory.
    average_decay: of the moving average of the parameters, which evaluation and the exported model
      then take; None for none.
    log_every: steps between metrics; each is the mean over the steps since the last.
    eval_every: steps between evaluations.
    eval_batches: held-out batches per evaluation, always the same.
    checkpoint_every: steps between checkpoints.
    max_to_keep: checkpoints to keep, None for all.
    export_dir: when set, the trained model is written there in its exported form.
    export_dtype: how the exported model stores its arrays.
    compilation_cache: directory where compiled programs wait for the next run.
    config_text: text for WORKDIR/config.gin.
  """
  if compilation_cache:
    jax.config.update('jax_compilation_cache_dir', str(compilation_cache))
    jax_cache.reset_cache()  # it may have been opened, without a directory, by an earlier program
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh, microbatches)
  run_files.write(workdir, objective, config_text)

  batches = global_batches.GlobalBatches(dataset, objective, batch_size, seed, mesh)
  averages = average_decay is not None
  wanted = train_state.shapes(objective, optimizer, batch_size, mesh, averages)
  saved = training_checkpoints.TrainingCheckpoints(workdir, max_to_keep)
  state = saved.restore(wanted, batches)
  if state is None:
    state = train_state.create(objective, optimizer, batch_size, seed, wanted)
    if init_from:
      state = _with_weights_of(init_from, state, objective, optimizer)
  start = int(state.step)
  log.info('%s: %s parameters, step %d of %d on %s', objective.model_name,
           f'{train_state.num_params(state):,}', start, total_steps, _devices(mesh))  # fmt: skip

  step = train_step.make_train_step(objective, optimizer, wanted, microbatches, average_decay)
  evaluate = _Evaluation(objective, eval_dataset, batch_size, eval_batches, mesh)
  writer = metric_writers.MetricWriter(workdir, start)
  others = _OtherEvaluations(objective, evaluations, writer)
  every = _Every(total_steps, log_every, eval_every if eval_dataset else None, checkpoint_every)
  with partitioning.activate(mesh), contextlib.closing(saved), contextlib.closing(writer):
    state = _loop(
        state, step, batches, saved, evaluate, others, writer, every,
        getattr(objective, 'check_metrics', None))
  if export_dir and int(state.step) >= total_steps:
    run_files.export(workdir, export_dir, dtype=export_dtype)
  return state


def _with_weights_of(directory: str, state, objective, optimizer) -> train_state.TrainState:
  model = checkpoints.load_model(directory, objective.model_name, on_host=True)
  run_files.check_text_files(objective, directory)
  state = train_state.with_variables(
      state, model.variables, getattr(objective, 'export_subtree', ''), optimizer,
      f'init_from {directory}')
  log.info('starting from the weights of %s', directory)
  return state


class _Every(NamedTuple):
  """When the loop does what, in steps."""

  total: int
  log: int
  evaluate: int | None
  checkpoint: int


def _loop(state, take_step, batches, saved, evaluate, others, writer, every: _Every,
          check_metrics):
  """Returns the state after `every.total` steps, or after the step a signal came in."""
  step = start = int(state.step)
  progress = metric_writers.ProgressLine(start, every.total)
  window = []  # metrics of the steps since the last report, still on the device
  stopping = False
  with _stop_signal() as stop:
    while step < every.total and not stopping:
      # Read and put on the devices while the two steps before are still running there.
      state, metrics = take_step(state, next(batches))
      step += 1
      window.append(metrics)
      # At most two steps run ahead: more would only pile up batches in the device's memory.
      jax.block_until_ready(window[-3:-2])
      if step == start + 1:
        jax.block_until_ready(metrics)
        progress.started(step)

      stopping = stop.requested(step)
      last = stopping or step == every.total
      logs, saves = last or step % every.log == 0, last or step % every.checkpoint == 0
      if logs or saves:
        _check_finite(window, step, saved)
      if logs:
        means, window = _means(window), []
        progress.report(step, means['loss'])
        writer.speed(step, progress.steps_per_second)
        writer.scalars(step, {f'train/{name}': value for name, value in means.items()})
        if check_metrics and (problem := check_metrics(step, means)):
          raise TrainingCollapsed(
              f'training collapsed by step {step}: {problem}; {_last_checkpoint(saved)}')
      if saves:
        saved.save(step, state, batches)
      if every.evaluate and (step % every.evaluate == 0 or last) and not stopping:
        writer.scalars(step, {f'eval/{k}': v for k, v in evaluate(state).items()})
        writer.media(step, evaluate.media(state))
        progress.started(step)
      if not stopping and others(step, last, state):
        progress.started(step)
  progress.end()
  log.info('reading %d batches took %.1f s, in part while steps ran', batches.count, batches.seconds)
  if stopping:
    log.info('stopped at step %d of %d; the same command goes on from there', step, every.total)
  return state


def describe(
    *, objective, dataset, optimizer, batch_size, seed=0, mesh_shape=(-1, 1, 1), microbatches=1,
    average_decay=None, **unused
) -> str:
  """Returns what `train` would run, as text: parameters, mesh, and the first batch's shapes.

  Takes the arguments of `train`; writes nothing and computes nothing on the device.
  """
  del unused
  mesh = partitioning.make_mesh(mesh_shape)
  partitioning.check_batch_size(batch_size, mesh, microbatches)
  train_step.check_microbatches(objective, microbatches)
  state = train_state.shapes(objective, optimizer, batch_size, mesh, average_decay is not None)
  batch = global_batches.GlobalBatches(dataset, objective, batch_size, seed, mesh).next_host_batch()
  count = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  lines = [
      f'model: {objective.model_name}, {train_state.num_params(state):,} parameters',
      f'state: {count / 2**20:,.0f} MiB with the optimizer, over {_devices(mesh)}',
      f'batch: {batch_size} examples'
      + (f' in {microbatches} microbatches' if microbatches > 1 else ''),
  ]
  for name, array in sorted(batch.items()):
    lines.append(f'  {name}: {array.dtype}{list(array.shape)}')
  return '\n'.join(lines)


class _Evaluation:
  """Mean metrics, and media, over the same held-out batches every time."""

  def __init__(self, objective, dataset, batch_size, num_batches, mesh):
    def eval_step(state, batch):
      return objective.eval_fn(state.trained, state.model_state, batch)

    self._step = jax.jit(eval_step, out_shardings=partitioning.replicated(mesh))
    self._media_fn = getattr(objective, 'media_fn', None)
    self._num_batches = num_batches
    self._batches = lambda: global_batches.GlobalBatches(dataset, objective, batch_size, _EVAL_SEED, mesh)

  def __call__(self, state: train_state.TrainState) -> dict[str, float]:
    batches = self._batches()
    metrics = []
    for _ in range(self._num_batches):
      metrics.append(self._step(state, next(batches)))
      jax.block_until_ready(metrics[-3:-2])
    return _means(metrics)

  def media(self, state: train_state.TrainState) -> dict[str, tuple[str, np.ndarray, int]]:
    if self._media_fn is None:
      return {}
    media = self._media_fn(state.trained, state.model_state, next(self._batches()))
    return {
        name: (kind, partitioning.to_host(clips), rate)
        for name, (kind, clips, rate) in media.items()
    }


class _OtherEvaluations:
  """Evaluations at steps of their own, by the first host alone and on one of its devices."""

  def __init__(self, objective, evaluations: Sequence[base.Evaluation], writer):
    self._objective, self._evaluations, self._writer = objective, evaluations, writer

  def __call__(self, step: int, last: bool, state: train_state.TrainState) -> bool:
    """Returns whether there was one to make."""
    due = [each for each in self._evaluations if last or step % each.every == 0]
    if not due:
      return False
    variables = partitioning.to_host({'params': state.trained, **state.model_state})
    if jax.process_index() == 0:
      with partitioning.activate(partitioning.make_mesh(devices=jax.local_devices()[:1])):
        for each in due:
          metrics, media = each(self._objective, variables)
          self._writer.scalars(step, {f'{each.name}/{key}': value for key, value in metrics.items()})
          self._writer.media(step, {f'{each.name}/{key}': value for key, value in media.items()})
    return True


def _means(window: list[dict[str, jax.Array]]) -> dict[str, float]:
  """Returns the mean of every metric: [{'loss': 1.}, {'loss': 2.}] -> {'loss': 1.5}."""
  window = jax.device_get(window)
  return {name: float(np.mean([m[name] for m in window], dtype=np.float64)) for name in window[-1]}


def _check_finite(window: list, step: int, saved: training_checkpoints.TrainingCheckpoints) -> None:
  """Raises TrainingDiverged at the first step of the window that is not finite."""
  names = ('loss', 'gradient_norm', 'parameter_norm')
  values = jax.device_get([[metrics[name] for name in names] for metrics in window])
  for number, norms in enumerate(values, start=step - len(values) + 1):
    if not np.isfinite(norms).all():
      found = ', '.join(f'{name} {value}' for name, value in zip(names, norms, strict=True))
      raise TrainingDiverged(
          f'training diverged at step {number}: {found}; {_last_checkpoint(saved, "good ")}')


def _last_checkpoint(saved: training_checkpoints.TrainingCheckpoints, kind: str = '') -> str:
  """Returns 'last checkpoint: step 200', once it is written."""
  saved.wait()
  step = saved.latest_step()
  return f'last {kind}checkpoint: {"none" if step is None else f"step {step}"}'


class _Stop:
  """Whether this run was asked to stop; on several hosts, all learn it at the same step."""

  def __init__(self):
    self.signalled = False

  def requested(self, step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self.signalled


@contextlib.contextmanager
def _stop_signal() -> Iterator[_Stop]:
  """Inside, SIGTERM and SIGINT ask for a stop after the current step.

  A second one is final; with several hosts a second SIGINT is, SIGTERM stays JAX's.
  """
  stop = _Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop  # handlers belong to the main thread
    return
  several = jax.process_count() > 1  # then JAX itself listens for SIGTERM and tells the other hosts
  numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
  old = {number: signal.getsignal(number) for number in numbers}

  def restore(*_):
    for number, handler in old.items():
      signal.signal(number, handler)

  def ask(*_):
    stop.signalled = True
    restore()
    if several:
      signal.raise_signal(signal.SIGTERM)

  for number in old:
    signal.signal(number, ask)
  try:
    yield stop
  finally:
    restore()


def _devices(mesh) -> str:
  sizes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
  return f'{mesh.size} {mesh.devices.flat[0].device_kind} device(s) ({sizes})'
