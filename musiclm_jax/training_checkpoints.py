"""L3. Training checkpoints (orbax): the state and the position in the data of a step, together.

The state goes on on any mesh and any number of hosts.  So does the data, in one of two ways: hosts
that read the same shards in batches of the same size go on at the saved position, and the run is
the undisturbed one bit for bit; with other shards nothing tells which records were seen, and the
data goes on in a new order, drawn from the seed and the step, with a warning in the log.
"""

import dataclasses
import logging
import os
from typing import Any, Protocol

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from musiclm_jax import errors, multi_host

log = logging.getLogger(__name__)


class Position(Protocol):
  """Where a host is in its shard of the data.

  shard: name of a folder, the same for the same shard and batch size only.
  is_owner: whether this host writes the shard's position; other hosts may read the same shard.
  """

  shard: str
  is_owner: bool

  def save(self, folder: epath.Path) -> None:
    """Writes the position into an existing folder."""

  def restore(self, folder: epath.Path) -> None:
    """Goes on after the batch at which `save` was called."""

  def start_anew(self, step: int) -> None:
    """Begins the data again, in an order of its own for every step."""


class _PositionHandler(ocp.CheckpointHandler):
  """Writes positions in the data, one folder per shard, beside the state of their step."""

  def save(self, directory: epath.Path, args: '_PositionArgs') -> None:
    if args.position.is_owner:
      folder = epath.Path(directory) / args.position.shard
      folder.mkdir(parents=True, exist_ok=True)
      args.position.save(folder)

  def restore(self, directory: epath.Path, args: '_PositionArgs') -> None:
    args.position.restore(epath.Path(directory) / args.position.shard)


@ocp.args.register_with_handler(_PositionHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class _PositionArgs(ocp.args.CheckpointArgs):
  position: Position


class TrainingCheckpoints:
  """The step directories of one run: WORKDIR/checkpoints/<step>/{state, data}."""

  def __init__(self, workdir: str, max_to_keep: int | None = 3):
    self._directory = _directory(workdir)
    options = ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep, create=True, cleanup_tmp_directories=True
    )
    self._manager = ocp.CheckpointManager(
        self._directory, options=options, item_names=('state', 'data')
    )

  def latest_step(self) -> int | None:
    """Returns the last step written, None when there is none."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, position: Position) -> None:
    """Takes a copy of the state and of the data position now; files are written meanwhile."""
    self._manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=_PositionArgs(position)),
        force=True,
    )

  def restore(self, wanted: Any, position: Position) -> Any:
    """Returns the state of the last step that can be read, None when nothing was ever saved.

    `wanted` gives shapes, dtypes and shardings, of any mesh; `position` moves to that of the same
    step, or starts anew when none was saved for its shard.
    Steps that some host cannot read are moved to WORKDIR/damaged, with a line in the log.  When
    none can be read, nothing is moved and the newest one's error is raised: starting over is the
    user's decision.
    """
    failures = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      state, failure = self._read(step, wanted, position)
      if failure:
        failures[step] = failure
        log.warning('checkpoint %s cannot be read: %s', self._directory / str(step), failure)
        continue
      for damaged in failures:
        self._set_aside(damaged)
      log.info('restored step %d from %s', step, self._directory)
      return state
    if failures:
      step, failure = next(iter(failures.items()))
      raise errors.UserError(
          f'no checkpoint in {self._directory} can be restored; step {step}: {failure}'
      )
    return None

  def wait(self) -> None:
    """Returns when everything saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  def _read(self, step: int, wanted: Any, position: Position) -> tuple[Any, str]:
    """Returns (state, ''), or (None, why not): all hosts the one, or all the other."""
    state, failure = None, ''
    try:
      arguments = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
      state = self._manager.restore(step, args=arguments)['state']
    except Exception as error:  # orbax and tensorstore each raise their own
      failure = _reason(error)
    # Before the position, which orbax would read in the midst of what hosts do together.
    if failure := _on_any_host(failure):
      return None, failure
    try:
      self._move(position, step)
    except Exception as error:  # as do datasets
      failure = _reason(error)
    failure = _on_any_host(failure)
    return (None, failure) if failure else (state, '')

  def _move(self, position: Position, step: int) -> None:
    """Moves `position` to that of `step`, or anew when its shard has none, and says so."""
    data = self._directory / str(step) / 'data'
    saved = sorted(path.name for path in data.iterdir() if path.is_dir()) if data.exists() else []
    if not saved:
      raise errors.UserError(f'{data} holds no position in the data')
    if position.shard in saved:
      _PositionHandler().restore(data, _PositionArgs(position))
      return
    others = f' and {len(saved) - 1} more' if len(saved) > 1 else ''
    log.warning(
        'step %d has data positions of %s%s, but host %d of %d reads %s now: its data goes on in a'
        ' new order', step, saved[0], others, jax.process_index(), jax.process_count(),
        position.shard)  # fmt: skip
    position.start_anew(step)

  def _set_aside(self, step: int) -> None:
    """Moves a step out of the way, so that it can be written again."""
    if jax.process_index() == 0:
      folder = self._directory.parent / 'damaged'
      folder.mkdir(parents=True, exist_ok=True)
      target = folder / str(step)
      if target.exists():
        target.rmtree()
      (self._directory / str(step)).rename(target)
      log.warning('moved damaged checkpoint %d to %s', step, target)
    multihost_utils.sync_global_devices(f'set_aside_{step}')
    self._manager.reload()


def read_variables(workdir: str, step: int | None = None) -> tuple[int, dict[str, Any]]:
  """Returns (step, {'params': ..., **model_state}) as numpy arrays, without the optimizer.

  The params are their moving average when the run kept one.
  Reads `step`, or the last step that can be read; neither objective nor data are needed.
  """
  directory = _directory(workdir)
  steps = _steps(directory)
  if step is not None and step not in steps:
    raise errors.UserError(f'{directory} has no step {step}, only {sorted(steps)}')
  for candidate in [step] if step is not None else sorted(steps, reverse=True):
    try:
      return candidate, _read_variables(directory / str(candidate) / 'state')
    except Exception as error:  # as in restore
      log.warning('checkpoint %s cannot be read: %s', directory / str(candidate), _reason(error))
  raise errors.UserError(f'no checkpoint in {directory} can be read')


def _on_any_host(failure: str) -> str:
  """Returns why this host or, when it did not, another one failed; '' when none did."""
  host = multi_host.first_failed(bool(failure))
  return failure or ('' if host is None else f'host {host} could not')


def _directory(workdir: str) -> epath.Path:
  workdir = os.fspath(workdir)
  if '://' not in workdir:
    workdir = os.path.abspath(workdir)  # orbax refuses relative paths
  return epath.Path(workdir) / 'checkpoints'


def _steps(directory: epath.Path) -> list[int]:
  if not directory.exists():
    raise errors.UserError(f'{directory} does not exist, wanted the checkpoints of a training run')
  return ocp.utils.checkpoint_steps(directory)  # complete ones only


def _read_variables(path: epath.Path) -> dict[str, Any]:
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    saved = checkpointer.metadata(path).item_metadata.tree
    params = 'average' if saved.get('average') else 'params'
    wanted = {key: saved[key] for key in (params, 'model_state') if key in saved}
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    tree = checkpointer.restore(
        path,
        args=ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True),
    )
  return {'params': tree[params], **(tree.get('model_state') or {})}


def _reason(error: Exception) -> str:
  return ' '.join(str(error).split())[:300] or type(error).__name__
