"""The job as a whole, with small random models: killed, shared out or undisturbed, the same files."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import resource
import signal

import gcs_server
import numpy as np
import pytest
import soundfile

from musiclm_jax import errors, generate
from musiclm_jax.generation_jobs import batch, jobs, object_store

PROMPTS = """id\tprompt\tseed\tseconds
calm\tslow calm piano\t\t
../rock\tloud fast rock\t\t0.5
emoji\tslow 🎹 موسيقى\t7\t
calm\tagain\t\t
none\t\t\t
drums\tdrums\t\t
last\tmusic\t\t
"""


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  path = tmp_path_factory.mktemp('in') / 'prompts.tsv'
  path.write_text(PROMPTS, encoding='utf-8')
  return str(path)


@pytest.fixture(scope='module')
def run(musiclm, table):
  """Returns a function of an output folder and changed settings: runs the job."""
  def run(output, **changes):
    settings = {'prompts': table, 'seconds': 1.0, 'batch_size': 2, 'shard': (0, 1)} | changes
    return batch.run(jobs.Job(output=str(output), **settings), musiclm, progress=False)

  return run


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """Returns {name: content} of an undisturbed run."""
  output = tmp_path_factory.mktemp('whole') / 'out'
  run(output)
  return _contents(output)


def _contents(folder):
  return {path.name: path.read_bytes() for path in sorted(pathlib.Path(folder).iterdir())}


def _timeless(contents):
  """Returns the files as values, without what depends on when they were made."""
  found = {}
  for name, content in contents.items():
    found[name] = content
    if name.endswith('.json'):
      found[name] = json.loads(content)
      found[name].pop('time', None)
  return found


def test_each_prompt_has_its_music_and_what_it_was_made_of(whole, musiclm):
  rock, = (name.removesuffix('.wav') for name in whole if name.startswith('rock-') and name.endswith('.wav'))
  stems = {'calm': 'calm', '../rock': rock, 'emoji': 'emoji', 'drums': 'drums', 'last': 'last'}
  shard = '00000-of-00001.json'
  assert set(whole) == {f'{stem}.{end}' for stem in stems.values() for end in ('wav', 'json')} | {
      'job.json', f'summary-{shard}', f'manifest-{shard}l', f'rejected-{shard}l'}
  for prompt_id, stem in stems.items():
    about = json.loads(whole[f'{stem}.json'])
    assert about['id'] == prompt_id and about['file'] == f'{stem}.wav'
    assert about['sha256'] == hashlib.sha256(whole[f'{stem}.wav']).hexdigest()
    assert len(whole[f'{stem}.wav']) == 44 + 2 * 24_000 * about['seconds']
    assert -1 <= about['similarity'] <= 1 and about['model'] == musiclm.fingerprint
    assert about['how']['coarse']['temperature'] == 0.95 and about['versions']['jax']
  assert json.loads(whole['emoji.json'])['seed'] == 7
  assert 'unknown to the model' in json.loads(whole['emoji.json'])['warnings'][0]
  assert len({whole[f'{stem}.wav'] for stem in stems.values()}) == 5


def test_manifest_and_summary_add_up_and_name_what_was_left_out(whole):
  manifest = [json.loads(line) for line in whole['manifest-00000-of-00001.jsonl'].splitlines()]
  assert [row['id'] for row in manifest] == ['calm', '../rock', 'emoji', 'drums', 'last']
  assert all('time' not in row for row in manifest)
  assert [json.loads(line) for line in whole['rejected-00000-of-00001.jsonl'].splitlines()] == [
      {'line': 5, 'id': 'calm', 'reason': 'the id is that of line 2 already'},
      {'line': 6, 'id': 'none', 'reason': 'the prompt is empty, wanted a description of the music'}]
  summary = json.loads(whole['summary-00000-of-00001.json'])
  assert (summary['pieces'], summary['rejected'], summary['audio_seconds']) == (5, 2, 4.5)
  assert summary['similarity']['least'] == min(row['similarity'] for row in manifest)


def test_a_piece_is_what_its_batch_gives(whole, musiclm):
  seeds = [json.loads(whole[f'{name}.json'])['seed'] for name in ('drums', 'emoji')]
  made = musiclm.generate(['slow 🎹 موسيقى', 'drums'], seconds=1, seed=seeds[::-1])
  names = ('emoji', 'drums')
  for name, waveform in zip(names, made, strict=True):
    samples = np.frombuffer(whole[f'{name}.wav'][44:], '<i2')
    np.testing.assert_array_equal(samples, np.clip(np.round(waveform * 32768), -32768, 32767))


class _Killed(BaseException):
  pass


def test_a_run_that_dies_at_any_write_goes_on(whole, run, tmp_path, monkeypatch):
  create, written = object_store.LocalStore.create, []

  def dies_once(self, name, content):
    if name not in written:
      written.append(name)
      (tmp_path / 'out').mkdir(exist_ok=True)
      (tmp_path / 'out' / f'.{name}.abc.tmp').write_bytes(content[:len(content) // 2])
      raise _Killed
    return create(self, name, content)

  monkeypatch.setattr(object_store.LocalStore, 'create', dies_once)
  for _ in range(len(whole) + 1):
    try:
      run(tmp_path / 'out')
      break
    except _Killed:
      pass
  assert sorted(written) == sorted(whole)
  found = {name: content for name, content in _contents(tmp_path / 'out').items() if name[0] != '.'}
  assert _timeless(found) == _timeless(whole)


def test_a_bucket_that_fails_now_and_then_gets_each_file_once(whole, run, table, monkeypatch):
  pytest.importorskip('google.cloud.storage')
  with gcs_server.Server(['music'], fault_rate=0.2, seed=1) as server:
    for name, value in server.environment().items():
      monkeypatch.setenv(name, value)
    server.put('music', 'prompts.tsv', pathlib.Path(table).read_bytes())
    run('gs://music/run1/', prompts='gs://music/prompts.tsv')
    found = {name.removeprefix('run1/'): content for name, content in server.objects('music').items()
             if name.startswith('run1/')}
    assert _timeless(found) == _timeless(whole)
    assert set(collections.Counter(server.created).values()) == {1}
    assert any(status in (429, 503) for _, _, status in server.log)
    before, listed = len(server.log), lambda: [path for _, path, _ in server.log[before:] if '/o?' in path]
    run('gs://music/run1/', prompts='gs://music/prompts.tsv')
    assert len([path for path in listed() if 'prefix' in path]) <= 1 + sum(
        status in (429, 503) for _, _, status in server.log[before:])


def test_two_shards_cover_the_list_exactly_once(whole, run, tmp_path):
  made = []
  for shard in ((1, 2), (0, 2)):
    before = set(_contents(tmp_path / 'out')) if made else set()
    run(tmp_path / 'out', shard=shard)
    made.append({name for name in _contents(tmp_path / 'out') if name.endswith('.wav')} - before)
  assert made[0] and made[1] and len(made[0]) + len(made[1]) == 5
  found = _contents(tmp_path / 'out')
  for kind in ('manifest', 'rejected'):
    lines = b''.join(found.pop(f'{kind}-0000{i}-of-00002.jsonl') for i in range(2)).splitlines()
    assert sorted(lines) == sorted(whole[f'{kind}-00000-of-00001.jsonl'].splitlines())
  pieces = lambda files: {name: value for name, value in _timeless(files).items()
                          if name.partition('-')[0] not in ('manifest', 'rejected', 'summary')}
  assert pieces(found) == pieces(whole)


def test_the_most_similar_are_kept(run, musiclm, tmp_path):
  (tmp_path / 'one.jsonl').write_text('{"id": "a", "prompt": "slow piano"}\n')
  settings = {'prompts': str(tmp_path / 'one.jsonl'), 'num_samples': 3, 'file_format': 'flac'}
  run(tmp_path / 'all', **settings)
  run(tmp_path / 'best', keep_best=2, **settings)
  scores = {i: json.loads((tmp_path / 'all' / f'a-{i + 1}.json').read_text())['similarity'] for i in range(3)}
  assert len(set(scores.values())) == 3
  best = sorted(scores, key=scores.get)[::-1]
  assert sorted(path.name for path in (tmp_path / 'best').glob('*.flac')) == ['a-1.flac', 'a-2.flac']
  for rank in range(2):
    about = json.loads((tmp_path / 'best' / f'a-{rank + 1}.json').read_text())
    assert (about['sample'], about['similarity']) == (best[rank], scores[best[rank]])
    assert (tmp_path / 'best' / about['file']).read_bytes() == (
        tmp_path / 'all' / f'a-{best[rank] + 1}.flac').read_bytes()
  waveform, rate = soundfile.read(tmp_path / 'best' / 'a-1.flac')
  assert rate == 24_000 and len(waveform) == 24_000


def test_another_job_does_not_go_on_in_its_place(run, table, tmp_path):
  with pytest.raises(errors.UserError, match='trained without condition_dropout'):
    stage = generate.StageSampling(guidance=2.0)
    run(tmp_path / 'out', how=generate.Sampling(semantic=stage))
  assert not (tmp_path / 'out').exists()
  run(tmp_path / 'out', shard=(0, 3))
  for changes, wanted in (({'seed': 1}, 'begun with seed 0, now it is 1'),
                          ({'batch_size': 1}, 'batch_size 2, now it is 1'),
                          ({'seconds': 2.0}, 'begun with other prompts'),
                          ({'file_format': 'flac'}, 'format wav, now it is flac')):
    with pytest.raises(errors.UserError, match=wanted):
      run(tmp_path / 'out', **changes)
  saved = json.loads((tmp_path / 'out' / 'job.json').read_text())
  (tmp_path / 'out' / 'job.json').write_text(json.dumps(saved | {'model': 'another'}))
  with pytest.raises(errors.UserError, match='begun with other model'):
    run(tmp_path / 'out', shard=(1, 3))
  (tmp_path / 'out' / 'job.json').write_text('[1]')
  with pytest.raises(errors.UserError, match='job.json is not a JSON object'):
    run(tmp_path / 'out')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'prompts.tsv').write_text('may be where it likes')
  (tmp_path / 'other' / 'calm.wav').write_text('mine')
  with pytest.raises(errors.UserError, match='other holds calm.wav and no job.json'):
    run(tmp_path / 'other')


def test_a_file_that_is_none_of_ours_is_named(whole, run, tmp_path):
  (tmp_path / 'calm.wav').write_bytes(whole['calm.wav'][:99])
  (tmp_path / 'job.json').write_bytes(whole['job.json'])
  with pytest.raises(errors.UserError, match='calm.wav has 99 bytes, wanted 48044'):
    run(tmp_path)


def test_what_two_make_at_once_is_written_once(whole, run, tmp_path, caplog):
  """The other has written a wav, not its json; or, on another processor, another wav."""
  other = bytes(len(whole['drums.wav']))
  for name, content in (('job.json', whole['job.json']), ('calm.wav', whole['calm.wav']), ('drums.wav', other)):
    (tmp_path / name).write_bytes(content)
  run(tmp_path)
  found = _contents(tmp_path)
  assert found['calm.wav'] == whole['calm.wav'] and found['drums.wav'] == other
  assert json.loads(found['drums.json'])['sha256'] == hashlib.sha256(other).hexdigest()
  assert [r.message for r in caplog.records if 'processor' in r.message] == [
      'warning: drums.wav was made on another kind of processor, it is kept']


def test_sigterm_finishes_the_batch_at_hand(whole, run, tmp_path, monkeypatch):
  create = object_store.LocalStore.create

  def interrupted(self, name, content):
    if name == 'calm.wav':
      os.kill(os.getpid(), signal.SIGTERM)
    return create(self, name, content)

  monkeypatch.setattr(object_store.LocalStore, 'create', interrupted)
  first = run(tmp_path / 'out')
  found = set(_contents(tmp_path / 'out'))
  assert first == {} and 'calm.json' in found and 'last.json' not in found
  assert {name[:-4] for name in found if name.endswith('.wav')} == {
      name[:-5] for name in found if name.endswith('.json')} - {'job'}
  assert run(tmp_path / 'out')['pieces'] == 5
  assert _timeless(_contents(tmp_path / 'out')) == _timeless(whole)


def test_a_full_disk_is_one_line_and_nothing_is_lost(whole, run, tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
  try:
    with pytest.raises(errors.UserError, match=r'out/\w+.wav: File too large'):
      run(tmp_path / 'out')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert all(path.suffix != '.tmp' for path in (tmp_path / 'out').iterdir())
  run(tmp_path / 'out')
  assert _timeless(_contents(tmp_path / 'out')) == _timeless(whole)


def test_music_that_is_none_is_left_out_and_said(whole, musiclm, run, tmp_path, monkeypatch):
  make = generate.MusicLM.generate

  def broken(self, prompts, **settings):
    waveforms = make(self, prompts, **settings).copy()
    waveforms[[prompt == 'drums' for prompt in prompts]] = np.nan
    return waveforms

  monkeypatch.setattr(generate.MusicLM, 'generate', broken)
  summary = run(tmp_path / 'out')
  found = _contents(tmp_path / 'out')
  assert (summary['pieces'], summary['rejected']) == (4, 3) and 'drums.wav' not in found
  assert found['emoji.wav'] == whole['emoji.wav']
  last = json.loads(found['rejected-00000-of-00001.jsonl'].splitlines()[-1])
  assert (last['id'], last['reason']) == ('drums', 'the music holds NaN')


def test_hosts_have_the_shares_that_jax_gives_them(monkeypatch):
  import jax
  job = jobs.Job('a.tsv', 'out')
  assert job.share() == (0, 1)
  monkeypatch.setattr(jax, 'process_index', lambda: 3)
  monkeypatch.setattr(jax, 'process_count', lambda: 8)
  assert job.share() == (3, 8) and dataclasses.replace(job, shard=(1, 2)).share() == (1, 2)
