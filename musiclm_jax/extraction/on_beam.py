"""Apache Beam hands the shards of a job to processes or machines; the only module that needs it.

Its elements are names of shards, a few bytes each: what they are made of, and what becomes of them,
is in the output directory, which every worker must see.
"""

import logging
from collections.abc import Iterator, Sequence

_root = logging.getLogger()
_handlers, _level = list(_root.handlers), _root.level
logging.disable(logging.WARNING)  # it misses Google's libraries where they are not installed
import apache_beam as beam  # noqa: E402
from apache_beam.options import pipeline_options  # noqa: E402

logging.disable(logging.NOTSET)
_root.handlers[:], _root.level = _handlers, _level  # Beam brings its own

from musiclm_jax.extraction import shards  # noqa: E402

LOCAL = 'FnApiRunner'  # not DirectRunner, which tries to download a program first
_NAMESPACE = 'extract_tokens'


class TokenizeShard(beam.DoFn):
  """The name of a shard -> its report; the models are loaded once for each process."""

  def __init__(self, job: shards.Job):
    self._job = job

  def process(self, name: str) -> Iterator[dict]:
    report = shards.tokenize_shard(self._job, name)
    counts = {'shards_kept' if report['kept'] else 'shards_written': 1, 'files': report['files'],
              'rejected': len(report['rejected']), 'clips': report['clips'],
              'tokens': report['tokens']}
    for key, value in counts.items():
      beam.metrics.Metrics.counter(_NAMESPACE, key).inc(value)
    yield report


def run(job: shards.Job, names: Sequence[str], runner: str = LOCAL, num_workers: int = 1,
        options: Sequence[str] = ()) -> dict[str, int]:
  """Tokenizes the shards and returns Beam's counters, where the runner tells them.

  `options` are Beam's own: ['--project=p', '--region=us-central1'].
  """
  flags = [f'--runner={runner}', *options]
  if runner == LOCAL:
    mode = 'multi_processing' if num_workers > 1 else 'in_memory'
    flags += [f'--direct_num_workers={num_workers}', f'--direct_running_mode={mode}',
              '--default_sdk_harness_log_level=WARNING']
  elif num_workers > 1:
    flags.append(f'--num_workers={num_workers}')
  pipeline = beam.Pipeline(options=pipeline_options.PipelineOptions(flags))
  _ = (pipeline | 'Shards' >> beam.Create(list(names)) | 'Deal' >> beam.Reshuffle()
       | 'Tokenize' >> beam.ParDo(TokenizeShard(job)))
  result = pipeline.run()
  result.wait_until_finish()
  found = beam.metrics.MetricsFilter().with_namespace(_NAMESPACE)
  return {counter.key.metric.name: counter.committed
          for counter in result.metrics().query(found)['counters']}
