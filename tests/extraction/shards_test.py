"""The work in pieces: interrupted anywhere and started again it ends as if nothing had been."""

import json
import os
import pathlib
import random
import subprocess
import time

import numpy as np
import pytest

from musiclm_jax import audio_tokenizer, checkpoints, errors, prepare_audio, token_layout
from musiclm_jax.data import records
from musiclm_jax.extraction import extract, published, shards

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_reports_add_up_and_name_what_was_left_out(whole, folder):
  manifest = json.loads(whole['manifest.json'])
  reports = [json.loads(whole[name]) for name in whole if name.startswith('reports/')]
  assert manifest['files'] == sum(report['files'] for report in reports) == 10
  assert manifest['rejected'] == 1 and manifest['other_files'] == 1
  for key in ('clips', 'tokens'):
    assert manifest[key] == sum(report[key] for report in reports) > 0
  rejected = [json.loads(line) for line in whole['rejected.jsonl'].splitlines()]
  assert [one['path'] for one in rejected] == [f'{folder}/broken.mp3']
  assert '0x' not in rejected[0]['reason']  # ffmpeg names its addresses
  assert not [name for name in whole if name.endswith('.tmp')]


class _Killed(BaseException):
  pass


def test_a_run_that_dies_at_any_file_goes_on(whole, folder, make_job, contents, tmp_path, monkeypatch):
  """As often as there are files: the writer of one dies, half of it under a temporary name."""
  job, create, written = make_job(folder, tmp_path / 'out'), published._create, []

  def dies_once(path, content):
    if path not in written and not os.path.exists(path):
      written.append(path)
      path = pathlib.Path(path)
      path.parent.mkdir(parents=True, exist_ok=True)
      path.with_name(f'.{path.name}.abc.tmp').write_bytes(content[:len(content) // 2])
      raise _Killed
    create(path, content)

  monkeypatch.setattr(published, '_create', dies_once)
  for _ in range(len(whole) + 1):
    try:
      extract.extract(job, progress=False)
      break
    except _Killed:
      pass
  assert len(written) == len(whole)
  assert contents(tmp_path / 'out') == whole


def test_what_is_complete_is_kept_and_what_is_damaged_is_made_again(
    whole, folder, make_job, contents, tmp_path, monkeypatch):
  output = tmp_path / 'out'
  for name, content in whole.items():
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_bytes(content)
  tokenize, calls = audio_tokenizer.Tokenizer.tokenize, []
  monkeypatch.setattr(audio_tokenizer.Tokenizer, 'tokenize',
                      lambda self, clips: calls.append(len(clips)) or tokenize(self, clips))
  manifest = extract.extract(make_job(folder, output), progress=False)
  assert not calls and manifest == json.loads(whole['manifest.json'])
  shard = output / 'train-00001-of-00003.tfrecord'
  shard.write_bytes(shard.read_bytes()[:-5])
  extract.extract(make_job(folder, output), progress=False)
  assert sum(calls) == manifest['shards'][shard.name]['clips'] and contents(output) == whole
  shard.unlink()
  extract.extract(make_job(folder, output), progress=False)
  assert contents(output) == whole


def test_two_that_work_the_same_shard_write_it_once(folder, make_job, contents, tmp_path):
  job = make_job(folder, tmp_path / 'out')
  name = shards.plan(job)[0]
  report = shards.tokenize_shard(job, name)
  before = (tmp_path / 'out' / f'{name}.tfrecord').stat()
  (tmp_path / 'out' / 'reports' / f'{name}.json').unlink()  # the other is between the two files
  assert shards.tokenize_shard(job, name) == report and not report['kept']
  after = (tmp_path / 'out' / f'{name}.tfrecord').stat()
  assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_files_that_come_later_wait_for_another_job(folder, make_job, tmp_path, noise):
  job = make_job(folder, tmp_path / 'out')
  names = shards.plan(job)
  (pathlib.Path(folder) / 'late.wav').write_bytes(b'no music')
  try:
    assert shards.plan(job) == names
    assert 'late' not in ''.join(path.read_text() for path in (tmp_path / 'out/inputs').iterdir())
  finally:
    (pathlib.Path(folder) / 'late.wav').unlink()


def test_another_job_does_not_go_on_in_its_place(folder, make_job, tmp_path):
  shards.plan(make_job(folder, tmp_path / 'out'))
  for changes, wanted in (({'clip_seconds': 3}, 'begun with clip_seconds 2, now it is 3'),
                          ({'num_shards': 2}, 'begun with num_shards 3'),
                          ({'coarse_levels': 3}, 'coarse_levels is 4 in .* 3 in')):
    with pytest.raises(errors.UserError, match=wanted):
      shards.plan(make_job(folder, tmp_path / 'out', **changes))
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'song.txt').write_text('mine')
  with pytest.raises(errors.UserError, match='not empty and holds no layout.json'):
    shards.plan(make_job(folder, tmp_path / 'other'))
  with pytest.raises(errors.UserError, match='are not complete, the first is test-00000-of-00001'):
    shards.finish(make_job(folder, tmp_path / 'out'), ['test-00000-of-00001'])


@pytest.mark.parametrize('plan', [b'[]', b'{}', b'\xff', b'{"format_version": 2}', b'[' * 100_000,
                                  b'{"format_version": 1, "settings": {}, "shards": ["../a"]}'])
def test_a_plan_from_anywhere_is_refused(folder, make_job, tmp_path, plan):
  shards.plan(make_job(folder, tmp_path / 'out'))
  (tmp_path / 'out' / 'job.json').write_bytes(plan)
  with pytest.raises(errors.UserError, match='job.json is not a'):
    shards.plan(make_job(folder, tmp_path / 'out'))


@pytest.mark.parametrize('changes', [{'clip_seconds': 0}, {'num_shards': 1.5}, {'test_fraction': 1},
                                     {'test_fraction': float('nan')}, {'batch_size': True}])
def test_settings_that_cannot_be_are_named(make_job, changes):
  with pytest.raises(errors.UserError, match=f'{next(iter(changes))} is .*, wanted'):
    make_job('in', 'out', **changes)


def test_waveform_records_give_the_tokens_of_the_files(folder, make_job, whole, tmp_path):
  prepare_audio.prepare_audio(input_dir=folder, output_dir=tmp_path / 'in', clip_seconds=2,
                              test_fraction=0.2, num_shards=2, progress=False)
  job = make_job(tmp_path / 'in', tmp_path / 'out', waveforms=True, splits=('train',))
  manifest = extract.extract(job, progress=False)
  assert records.splits(tmp_path / 'out') == ['train'] and len(manifest['shards']) == 2
  for name, content in whole.items():
    (tmp_path / 'whole' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'whole' / name).write_bytes(content)
  a, b = ({record['id']: record for record in records.read_tokens(tmp_path / where, 'train')}
          for where in ('out', 'whole'))
  assert len(a) == manifest['clips'] and sorted(a) == sorted(b)
  for record_id, record in a.items():
    for key in set(record) - {'id'}:
      np.testing.assert_array_equal(record[key], b[record_id][key])


def test_waveform_records_become_token_records_layout_and_codebooks(models, noise, make_job, tmp_path):
  lengths = {'train': [2.4, 2, 0.5, 1], 'test': [1.7]}
  for split, seconds in lengths.items():
    deals = [seconds[:2], seconds[2:]] if split == 'train' else [seconds]
    for i, deal in enumerate(deals):
      records.write_shard(tmp_path / 'in' / records.shard_name(split, i, len(deals)), [
          records.waveform_record(f'{split} {length}', noise(length, i)) for length in deal])
  records.write_info(tmp_path / 'in', {'kind': 'waveforms', 'longest_seconds': 2.4,
                                       'seconds': {k: sum(v) for k, v in lengths.items()}})
  job = make_job(tmp_path / 'in', tmp_path / 'out', waveforms=True, clip_seconds=30)
  manifest = extract.extract(job, progress=False)
  assert manifest['clips'] == 4 and manifest['files'] == 3
  info = records.read_info(tmp_path / 'out', 'tokens')
  assert info['records'] == {'train': 3, 'test': 1}
  read = list(records.read_tokens(tmp_path / 'out', 'train'))
  assert [record['id'] for record in read] == ['train 2.4', 'train 2', 'train 1']
  for record, seconds in zip(read, (2, 2, 1), strict=True):
    assert len(record['semantic_tokens']) == 25 * seconds and len(record['mulan_tokens']) == 1
    assert record['acoustic_tokens'].shape == (50 * seconds, 6)
  saved = token_layout.read_layout(tmp_path / 'out')
  assert saved.layout == token_layout.TokenLayout(
      token_layout.TokenStream('mulan', 3, 8, 0), token_layout.TokenStream('semantic', 1, 32, 25),
      token_layout.TokenStream('acoustic', 6, 16, 50), coarse_levels=4)
  assert saved.tokenizers == {
      name: checkpoints.token_fingerprint(checkpoints.load_model(f'{models}/{name}'))
      for name in token_layout.TOKENIZERS}
  assert np.load(tmp_path / 'out' / records.CODEBOOKS_FILE).shape[:2] == (3, 8)
  (tmp_path / 'out' / 'job.json').unlink()
  with pytest.raises(errors.UserError, match='already holds token records'):
    extract.extract(job, progress=False)


def _start(command) -> subprocess.Popen:
  return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ, JAX_PLATFORMS='cpu'),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _complete(job: shards.Job) -> int:
  return len(list(pathlib.Path(job.output, 'reports').glob('*.json')))


def _kill_at_work(command, job: shards.Job, draw: random.Random, after_a_shard: bool) -> int:
  """Kills a process that has begun, or has added a shard; returns how many are complete then."""
  before, process, text = _complete(job), _start(command), b''
  while b'tokens:' not in text:
    piece = process.stderr.read(1)
    assert piece, text
    text += piece
  while after_a_shard and _complete(job) == before and process.poll() is None:
    time.sleep(0.002)
  time.sleep(draw.uniform(0, 0.05 if after_a_shard else 1))
  process.kill()
  process.communicate(timeout=60)
  return _complete(job)


@pytest.mark.parametrize('kills', [1, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_processes_leave_what_the_next_one_needs(
    kills, folder, make_job, command, contents, tmp_path):
  job = make_job(folder, tmp_path / 'out', num_shards=8)
  line = command(job)
  draw = random.Random(kills)
  done = [_kill_at_work(line, job, draw, after_a_shard=i % 2 == 0) for i in range(kills)]
  assert done == sorted(done) and 0 < done[0] < 9
  last = _start(line)
  _, text = last.communicate(timeout=120)
  assert last.returncode == 0, text
  extract.extract(make_job(folder, tmp_path / 'whole', num_shards=8), progress=False)
  assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')
  print(f'complete shards at each kill: {done}')
