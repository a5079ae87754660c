r"""L5. Registers the tasks of a run with seqio, for tools that know tasks by their names only.

The environment says which run, by the flags of tools/train.py; WORKDIR need not be set:

  MUSICLM_JAX_RUN='--gin_file=gin/runs/semantic_tiny.gin --gin.TOKENS_DIR=data/tokens' \
    seqio_cache_tasks --module_import=tasks.registered --output_cache_dir=data/cache \
    --min_shards=16 --pipeline_options=--runner=FnApiRunner

A run reads what was cached with --gin.datasets.SeqioDataset.cache_dir=data/cache.  Token records
are cached whole, so one cache serves the three stages; of captions, clips that have one.
"""

import os
import shlex
from collections.abc import Iterable

import seqio

from musiclm_jax import cli, errors, gin_utils, train

VARIABLE = 'MUSICLM_JAX_RUN'


def register(gin_files: Iterable[str], bindings: Iterable[str] = ()) -> list[str]:
  """Returns the names under which the tasks of a run and their mixtures are registered now.

  Replaces gin's configuration.
  """
  gin_utils.load_without_data(gin_files, bindings)
  names = []
  for dataset in gin_utils.arguments(train.train, ('dataset', 'eval_dataset')).values():
    task = getattr(dataset, 'task', None)
    if isinstance(task, seqio.Mixture):
      _add(seqio.MixtureRegistry, task)
      names.append(task.name)
    for each in task.tasks if isinstance(task, seqio.Mixture) else [task]:
      if isinstance(each, seqio.Task):
        _add(seqio.TaskRegistry, each)
        names.append(each.name)
  return list(dict.fromkeys(names))


def _add(registry: type, provider: seqio.Task | seqio.Mixture) -> None:
  if provider.name in registry.names():  # the same records: the name says which
    registry.remove(provider.name)
  registry.add_provider(provider.name, provider)


def _of_the_environment() -> list[str]:
  """Registers the tasks of the run in VARIABLE."""
  if VARIABLE not in os.environ:
    raise errors.UserError(f'{VARIABLE} is not set, wanted the flags of a run, as '
                           '"--gin_file=gin/runs/semantic_tiny.gin --gin.TOKENS_DIR=data/tokens"')
  flags, bindings = cli.parse_gin(cli.parser(VARIABLE, ''), shlex.split(os.environ[VARIABLE]))
  return register(flags.gin_file, bindings)


NAMES = _of_the_environment()
