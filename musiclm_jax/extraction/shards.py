"""The unit of work: one shard of token records, made of files that were dealt to it beforehand.

  OUT/layout.json, mulan_codebooks.npy    as all token records have them
  OUT/inputs/train-00003-of-00016.jsonl   {"id": "rock/a.flac", "path": "music/rock/a.flac"}, ..
  OUT/job.json                            the settings and how many shards: the plan is complete
  OUT/train-00003-of-00016.tfrecord       token records
  OUT/reports/train-00003-of-00016.json   counts, rejected files, sha256: the shard is complete
  OUT/rejected.jsonl                      {"path": "music/b.mp3", "reason": "..."}: the dead letters
  OUT/manifest.json                       counts of the whole
  OUT/info.json                           the mark of a complete directory, written last

Every file appears whole and is a function of the inputs, the models and the settings alone; so a
shard may be worked again, or by two at a time, and a run that was killed goes on by starting anew.
(The same kind of processor, that is: another may round another way.)
"""

import collections
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from musiclm_jax import audio, audio_tokenizer, errors, prepare_audio, token_layout
from musiclm_jax.extraction import inputs, published

FORMAT_VERSION = 1
PLAN_FILE, MANIFEST_FILE, REJECTED_FILE = 'job.json', 'manifest.json', 'rejected.jsonl'
_COUNTS = ('files', 'rejected', 'clips', 'samples', 'tokens')
_loading = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Job:
  """What is tokenized, by which models, and how; the settings decide the bytes of the output.

  input: a folder or gs:// prefix of audio files, or, with `waveforms`, a directory of records.
  splits: of waveform records; empty for all.
  """

  input: str
  models: str
  output: str
  waveforms: bool = False
  splits: tuple[str, ...] = ()
  clip_seconds: int = 30
  test_fraction: float = 0.05
  num_shards: int = 16
  batch_size: int = 4
  semantic_window_seconds: int = 10
  acoustic_levels: int | None = None
  coarse_levels: int = 4
  fine_uses_mulan: bool = False

  def __post_init__(self):
    for name in ('clip_seconds', 'num_shards', 'batch_size', 'semantic_window_seconds'):
      value = getattr(self, name)
      if type(value) is not int or value < 1:
        raise errors.UserError(f'{name} is {value!r}, wanted a whole number, at least 1')
    if not 0 <= self.test_fraction < 1:
      raise errors.UserError(
          f'test_fraction is {self.test_fraction}, wanted 0 or more and below 1')

  def settings(self) -> dict[str, Any]:
    """Returns what must not change while a job is unfinished (the models are in layout.json)."""
    values = dataclasses.asdict(self)
    return {name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items() if name not in ('models', 'output')}

  def path(self, *names: str) -> epath.Path:
    return epath.Path(self.output).joinpath(*names)


def tokenizer(job: Job, on_host: bool = False) -> audio_tokenizer.Tokenizer:
  return audio_tokenizer.Tokenizer.load(
      job.models, on_host, clip_seconds=job.clip_seconds, batch_size=job.batch_size,
      semantic_window_seconds=job.semantic_window_seconds, acoustic_levels=job.acoustic_levels)


@functools.lru_cache(maxsize=1)
def _kept_tokenizer(job: Job) -> audio_tokenizer.Tokenizer:
  return tokenizer(job)


def plan(job: Job) -> list[str]:
  """Returns the names of all shards; a job that was planned before keeps its list of inputs."""
  models = tokenizer(job, on_host=True)
  saved = models.layout(job.coarse_levels, job.fine_uses_mulan)
  layout = job.path(token_layout.LAYOUT_FILE)
  if layout.exists():
    token_layout.check_same(token_layout.read_layout(job.output), saved, str(layout), job.models)
  elif job.path().exists() and any(
      not published.is_temporary(path.name) for path in job.path().iterdir()):
    raise errors.UserError(
        f'{job.output} is not empty and holds no {token_layout.LAYOUT_FILE}')
  found = published.read_json(job.path(PLAN_FILE))
  if found is None and job.path('info.json').exists():
    raise errors.UserError(f'{job.output} already holds token records: choose another directory')
  if found is None:
    found = _write_plan(job, saved, models.mulan_codebooks())
  _check_plan(job, found)
  return found['shards']


def _write_plan(job: Job, saved: token_layout.SavedLayout, codebooks: np.ndarray) -> dict[str, Any]:
  from musiclm_jax.data import records
  shards, others = _list_shards(job)
  published.publish(job.path(token_layout.LAYOUT_FILE), saved.to_text().encode())
  content = io.BytesIO()
  np.save(content, codebooks)
  published.publish(job.path(records.CODEBOOKS_FILE), content.getvalue())

  def write_inputs(name: str) -> None:
    lines = [json.dumps({'id': source.id, 'path': source.path}) + '\n' for source in shards[name]]
    published.publish(job.path('inputs', f'{name}.jsonl'), ''.join(lines).encode())

  published.each(write_inputs, shards)
  found = {'format_version': FORMAT_VERSION, 'settings': job.settings(), 'shards': list(shards),
           'other_files': others}
  published.publish(job.path(PLAN_FILE), published.to_json(found))
  return found


def _list_shards(job: Job) -> tuple[dict[str, list[prepare_audio.Source]], int]:
  """Returns ({'train-00000-of-00016': what is read for it}, number of files that are no audio)."""
  from musiclm_jax.data import records

  def stem(path) -> str:
    return pathlib.PurePath(path).name.removesuffix('.tfrecord')

  if not job.waveforms:
    sources, others = inputs.find(job.input, job.test_fraction)
    return {stem(records.shard_name(split, index, count)): members
            for split, index, count, members in inputs.deal(sources, job.num_shards)}, others
  splits = job.splits or records.splits(job.input)
  return {stem(path): [prepare_audio.Source(path, stem(path), split)]
          for split in splits for path in records.list_shards(job.input, split)}, 0


def _check_plan(job: Job, found: Mapping[str, Any]) -> None:
  """Raises an error when an unfinished job was started with other settings."""
  wanted = job.settings()
  try:
    if found['format_version'] != FORMAT_VERSION:
      raise ValueError(f'format_version {found["format_version"]!r}, wanted {FORMAT_VERSION}')
    settings = dict(found['settings'])
    if not all(isinstance(name, str) and '/' not in name for name in found['shards']):
      raise ValueError('a shard is not a file name')
  except (KeyError, TypeError, ValueError) as error:
    raise errors.UserError(f'{job.path(PLAN_FILE)} is not a plan: {error!r}') from error
  for name in sorted(settings | wanted):
    if settings.get(name) != wanted.get(name):
      raise errors.UserError(
          f'{job.output} was begun with {name} {settings.get(name)!r}, now it is '
          f'{wanted.get(name)!r}: choose another directory')


def tokenize_shard(job: Job, name: str) -> dict[str, Any]:
  """Returns the report of a shard, which is written unless it is complete already.

  {'split', 'files', 'rejected': [{'path', 'reason'}, ..], 'clips', 'samples', 'tokens', 'bytes',
  'sha256'}, and 'kept': whether it was complete.
  """
  from musiclm_jax.data import records
  if report := _finished(job, name):
    return report | {'kept': True}
  with _loading:
    models = _kept_tokenizer(job)
  report = {'split': name.rsplit('-', 3)[0], 'files': 0, 'rejected': [], 'clips': 0, 'samples': 0,
            'tokens': 0}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'records')
    records.write_shard(path, _records(job, name, models, report))
    content = path.read_bytes()
  report |= {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
  published.publish(job.path(f'{name}.tfrecord'), content)
  published.publish(job.path('reports', f'{name}.json'), published.to_json(report))
  return report | {'kept': False}


def _finished(job: Job, name: str) -> dict[str, Any] | None:
  """Returns the report of a complete shard; of one that was damaged since, None."""
  report = _report(job, name)
  content = report and published.read(job.path(f'{name}.tfrecord'))
  if content is None or hashlib.sha256(content).hexdigest() != report.get('sha256'):
    return None
  return report


def _report(job: Job, name: str) -> dict[str, Any] | None:
  return published.read_json(job.path('reports', f'{name}.json'))


def reports(job: Job, names: Sequence[str]) -> dict[str, dict[str, Any] | None]:
  """Returns the report of each shard, None for those that are not complete."""
  return dict(zip(names, published.each(functools.partial(_report, job), names), strict=True))


def _records(job, name, models, report) -> Iterator[bytes]:
  """Yields the token records of a shard, in the order of its inputs, and counts them."""
  from musiclm_jax.data import records
  for clip, tokens in audio_tokenizer.tokenized(_clips(job, name, report), models):
    report['samples'] += len(clip['waveform'])
    if tokens:
      report['clips'] += 1
      report['tokens'] += sum(array.size for key, array in tokens.items() if key.endswith('tokens'))
      yield records.token_record(clip['id'], tokens)


def _clips(job: Job, name: str, report: dict) -> Iterator[dict]:
  """Yields {'id', 'waveform'}; what cannot be read goes to report['rejected']."""
  from musiclm_jax.data import records
  for source in _sources(job, name):
    report['files'] += 1
    if job.waveforms:
      yield from records.read_waveform_shard(source['path'])
      continue
    try:
      clips = inputs.read_clips(source['path'], source['id'], job.clip_seconds)
    except Exception as error:  # a decoder may raise anything: one bad file ends no job
      report['rejected'].append({'path': source['path'], 'reason': _reason(error)})
      continue
    for clip_id, samples in clips:
      yield {'id': clip_id, 'waveform': audio.from_pcm16(samples)}


def _reason(error: Exception) -> str:
  """Returns one line that is the same in every run: decoders like to name their addresses."""
  text = str(error) if isinstance(error, errors.UserError | OSError) else repr(error)
  return re.sub(r'( @|( object)? at) 0x[0-9a-f]+', '', ' '.join(text.split()))


def _sources(job: Job, name: str) -> Iterator[dict[str, str]]:
  path = job.path('inputs', f'{name}.jsonl')
  content = published.read(path)
  if content is None:
    raise errors.UserError(f'{path} is missing, which lists what {name} is made of')
  for line in content.splitlines():
    yield json.loads(line)


def finish(job: Job, names: Sequence[str]) -> dict[str, Any]:
  """Returns the manifest of a job whose shards are all complete, and writes what sums them up."""
  from musiclm_jax.data import records
  found = reports(job, names)
  if missing := [name for name, report in found.items() if report is None]:
    raise errors.UserError(f'{len(missing)} of {len(names)} shards of {job.output} are not '
                           f'complete, the first is {missing[0]}: start again')
  rejected = [one for report in found.values() for one in report['rejected']]
  lines = [json.dumps(one) + '\n' for one in sorted(rejected, key=lambda one: one['path'])]
  published.publish(job.path(REJECTED_FILE), ''.join(lines).encode())
  totals, clips = collections.Counter(), collections.Counter()
  for report in found.values():
    clips[report['split']] += report['clips']
    totals.update({key: len(report[key]) if key == 'rejected' else report[key] for key in _COUNTS})
  plan_ = published.read_json(job.path(PLAN_FILE))
  manifest = {
      'format_version': FORMAT_VERSION, **{key: totals[key] for key in _COUNTS if key != 'samples'},
      'hours': round(totals['samples'] / audio.SAMPLE_RATE / 3600, 6),
      'other_files': plan_['other_files'],
      'shards': {f'{name}.tfrecord': {key: report[key] for key in ('clips', 'bytes', 'sha256')}
                 for name, report in found.items()}}
  published.publish(job.path(MANIFEST_FILE), published.to_json(manifest))
  published.remove_temporary(job.output)
  if not totals['clips']:
    reason = f'; the first: {rejected[0]["reason"]}' if rejected else ''
    raise errors.UserError(f'none of {totals["files"]} files of {job.input} could be tokenized, '
                           f'see {job.path(REJECTED_FILE)}{reason}')
  info = audio_tokenizer.info_of_records(
      token_layout.read_layout(job.output).layout, clips, job.semantic_window_seconds)
  with tempfile.TemporaryDirectory() as folder:
    records.write_info(folder, info)
    published.publish(job.path('info.json'), pathlib.Path(folder, 'info.json').read_bytes())
  return manifest
