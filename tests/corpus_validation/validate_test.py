"""The whole report of a folder with everything in it that can be wrong."""

import html.parser
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from musiclm_jax import audio, errors
from musiclm_jax.corpus_validation import html_report, text_report, validate
from musiclm_jax.data import records

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = '<script>alert(1)<_script>.wav'
HOSTILE = [SCRIPT, '"><img src=x onerror=alert(1)>.wav', 'line\nbreak.wav', 'with space.wav',
           '\u202egnp.wav', "it's & $x$ 50%.wav", '\x1b[31mred.wav']
BAD = {
    'text.flac': 'not audio', 'empty.wav': 'not audio', 'nan.wav': 'NaN or infinite',
    'header.wav': 'holds no samples', 'loop.wav': 'symbolic links', 'dangling.wav': 'No such file',
    'pipe.wav': 'not a regular file', 'rate.wav': 'sample rate is 10 Hz',
    'bad\udcff.wav': 'not UTF-8',
}


def _make_bad(folder, noise):
  """Writes what cannot be read, and cut.flac, of which a part can."""
  (folder / 'text.flac').write_text('no music\n' * 99)
  (folder / 'empty.wav').touch()
  bad = noise.copy()
  bad[70_000] = np.nan
  soundfile.write(folder / 'nan.wav', bad, 24_000, subtype='FLOAT')
  soundfile.write(folder / 'header.wav', np.zeros(0), 24_000)
  soundfile.write(folder / 'rate.wav', noise, 10)
  (folder / 'loop.wav').symlink_to('loop.wav')
  (folder / 'dangling.wav').symlink_to('nowhere.wav')
  (folder / 'again').symlink_to(folder)
  os.mkfifo(folder / 'pipe.wav')
  (folder / os.fsdecode(b'bad\xff.wav')).write_bytes(b'x')
  soundfile.write(folder / 'cut.flac', noise, 24_000)
  content = (folder / 'cut.flac').read_bytes()
  (folder / 'cut.flac').write_bytes(content[:len(content) // 2])


@pytest.fixture(scope='module')
def folders(tmp_path_factory, piece):
  """Returns (a folder of all kinds of files, a folder for evaluation, a csv of MusicCaps)."""
  root = tmp_path_factory.mktemp('validate')
  music, evaluation = root / 'music', root / 'evaluation'
  (music / 'deep').mkdir(parents=True)
  evaluation.mkdir()
  for seed, name in enumerate(HOSTILE):
    soundfile.write(music / name, piece(seed, 3), 24_000)
  soundfile.write(music / 'deep' / 'copy.mp3', 0.5 * piece(0, 3), 24_000)
  soundfile.write(music / 'deep' / 'abcdefghijk_30.ogg', piece(20, 5), 24_000)
  soundfile.write(evaluation / 'clip.flac', piece(20, 5)[30_000:], 24_000)
  soundfile.write(evaluation / 'other.flac', piece(21, 3), 24_000)
  (evaluation / 'broken.wav').write_bytes(b'RIFF')
  soundfile.write(music / 'short.wav', piece(22, 0.5), 24_000)
  soundfile.write(music / 'silent.wav', np.zeros(48_000), 24_000)
  soundfile.write(music / 'clipped.wav', np.clip(20 * piece(23, 2), -1, 1), 24_000)
  soundfile.write(music / 'offset.wav', 0.2 + piece(24, 2), 8_000)
  soundfile.write(music / 'quiet.wav', 0.02 * piece(25, 2), 24_000, subtype='FLOAT')
  _make_bad(music, piece(26, 4))
  (music / 'notes.txt').write_text('not audio')
  captions = [(SCRIPT, '<script>alert(2)</script> A song with the drums of a band.'),
              ('with space.wav', 'Sad piano'), ('silent.wav', 'sad piano.'), ('short.wav', ''),
              ('gone.wav', 'A song'), ('quiet.wav', 'x' * 10_000)]
  (music / 'captions.jsonl').write_text(
      '\n'.join(json.dumps({'path': path, 'caption': caption}) for path, caption in captions))
  (root / 'm.csv').write_text('ytid,is_balanced_subset,is_audioset_eval\nabcdefghijk,True,True\n')
  return str(music), str(evaluation), str(root / 'm.csv')


@pytest.fixture(scope='module')
def report(folders):
  music, evaluation, musiccaps = folders
  return validate.validate(input_dir=music, evaluation_dir=evaluation, musiccaps=musiccaps,
                           num_workers=3, progress=False)


def _warnings(report):
  return {warning['kind']: warning['names'] for warning in report['warnings']}


def test_every_file_is_in_the_report_once(report):
  files = {file['name']: file for file in report['files']}
  assert len(files) == len(report['files']) == len(HOSTILE) + 8 + len(BAD)
  assert report['other_files'] == 2 and report['totals']['readable'] == len(HOSTILE) + 8
  for name, reason in BAD.items():
    assert reason in files[name]['error'], name
  assert not [name for name in files if name not in BAD and files[name]['error']]
  assert files['deep/copy.mp3']['encoding'] == 'MP3 MPEG_LAYER_III'
  assert report['totals']['seconds'] == pytest.approx(
      sum(file['seconds'] for file in files.values() if not file['error']))
  assert sum(report['totals']['durations']['counts']) == report['totals']['readable']


def test_what_is_wrong_is_warned_of(report):
  found = _warnings(report)
  assert found['duplicates'] == [f'{SCRIPT} = deep/copy.mp3']
  assert found['musiccaps balanced'] == ['deep/abcdefghijk_30.ogg']
  assert len(found['evaluation']) == 1
  assert found['evaluation'][0].startswith('deep/abcdefghijk_30.ogg = clip.flac')
  assert found['evaluation unreadable'] == ['broken.wav']
  assert found['short'] == ['short.wav: 0.50 s'] and found['silent'] == ['silent.wav: 100%']
  assert [name.split(':')[0] for name in found['clipped']] == ['clipped.wav']
  assert [name.split(':')[0] for name in found['dc offset']] == ['offset.wav']
  assert [name.split(':')[0] for name in found['quiet']] == ['quiet.wav']
  assert [name.split(':')[0] for name in found['broken off']] == ['cut.flac']
  assert found['low rate'] == ['offset.wav: 8,000 Hz'] and len(found['unreadable']) == len(BAD)
  assert found['repeated captions'] == ['sad piano: 2 files']
  assert found['empty captions'] == ['short.wav']
  assert found['captions without file'] == ['gone.wav']
  assert len(found['files without caption']) == len(report['files']) - 4
  assert 'across splits' not in found and 'language' not in found


def test_the_json_is_json_and_keeps_every_name(report):
  again = json.loads(json.dumps(report, allow_nan=False))
  assert again == report and 'bad\udcff.wav' in {file['name'] for file in again['files']}


def test_the_summary_is_lines_without_control_characters(report):
  lines = text_report.summary(report).split('\n')
  assert all(line.isprintable() and len(line) < 500 for line in lines)
  first = next(i for i, line in enumerate(lines) if line.startswith('warning'))
  assert all(line.startswith(('warning: ', '    ')) for line in lines[first:])
  unreadable = next(i for i, line in enumerate(lines) if 'cannot be read (9)' in line)
  assert lines[unreadable + 6] == '    and 4 more'
  assert text_report.printable('a\nb\udcff\u202e\x1b é') == r'a\nb\udcff\u202e\x1b é'


class _Tags(html.parser.HTMLParser):
  def __init__(self):
    super().__init__()
    self.tags, self.attributes, self.text = set(), [], ''

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.attributes += attrs

  def handle_data(self, data):
    self.text += data


def test_the_page_runs_and_loads_nothing(report):
  content = html_report.page(report)
  content.encode()
  parsed = _Tags()
  parsed.feed(content)
  assert not parsed.tags & {'script', 'iframe', 'object', 'link', 'a', 'form', 'svg'}
  assert not [name for name, _ in parsed.attributes if name.startswith('on') or name == 'href']
  images = [value for name, value in parsed.attributes if name == 'src']
  assert len(images) == 8 and all(value.startswith('data:image/svg+xml;base64,') for value in images)
  assert SCRIPT in parsed.text and 'onerror=alert(1)>' in parsed.text and r'bad\udcff.wav' in parsed.text


def test_records_and_corpora_are_read_too(tmp_path, piece):
  (tmp_path / 'r').mkdir()
  (tmp_path / 'c').mkdir()
  lines = []
  for split, seeds in (('train', (1, 2)), ('test', (2,))):
    records.write_shard(tmp_path / 'r' / records.shard_name(split, 0, 1), [
        records.waveform_record(f'{split}{seed}', piece(seed, 3), ['A song']) for seed in seeds])
    for seed in seeds:
      soundfile.write(tmp_path / 'c' / f'{split}{seed}.wav', piece(seed, 3), 24_000)
      lines.append({'id': f'{split}{seed}', 'path': f'{split}{seed}.wav', 'split': split,
                    'captions': ['A song'], 'texts': {'labels': ['Piano', '']}})
  records.write_info(tmp_path / 'r', {'kind': 'waveforms'})
  (tmp_path / 'c' / 'corpus.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  for name, texts in (('r', 1), ('c', 2)):
    report = validate.validate(input_dir=str(tmp_path / name), progress=False)
    assert report['totals']['split'] == {'train': 2, 'test': 1}
    assert report['duplicates']['across_splits'] in ([['test2', 'train2']], [['train2', 'test2']])
    assert 'across splits' in _warnings(report) and report['captions']['count'] == 3 * texts


def test_names_that_come_twice_and_errors_of_any_kind_do_not_end_it(tmp_path, piece, monkeypatch):
  soundfile.write(tmp_path / 'a.wav', piece(1, 2), 24_000)
  line = {'id': 'a', 'path': 'a.wav', 'split': 'train', 'captions': []}
  (tmp_path / 'corpus.jsonl').write_text('\n'.join([json.dumps(line)] * 2))
  report = validate.validate(input_dir=str(tmp_path), progress=False)
  assert [file['name'] for file in report['files']] == ['a', 'a (2)']
  monkeypatch.setattr(audio, 'recorded', lambda path: 1 // 0)
  report = validate.validate(input_dir=str(tmp_path), progress=False)
  assert [file['error'] for file in report['files']] == [
      'ZeroDivisionError: integer division or modulo by zero'] * 2
  assert 'none' in text_report.summary(report) and html_report.page(report)


def test_inputs_that_cannot_be_used_are_errors(tmp_path):
  for folder, wanted in (('none', 'is not a directory'), ('.', 'holds no audio'),
                         ('gs://b/x', 'not a local folder')):
    where = folder if '://' in folder else str(tmp_path / folder)
    with pytest.raises(errors.UserError, match=wanted):
      validate.validate(input_dir=where, progress=False)
  for path in (tmp_path, tmp_path / 'none' / 'r.html'):
    with pytest.raises(errors.UserError, match='directory'):
      validate.check_writable(str(path))


def test_the_tool(folders, tmp_path):
  music = folders[0]
  outputs = {name: tmp_path / f'r.{name}' for name in ('html', 'json')}
  flags = [f'--input={music}', *(f'--{name}={path}' for name, path in outputs.items())]
  command = [sys.executable, 'tools/validate_corpus.py', *flags]
  environment = dict(os.environ, PYTHONIOENCODING='ascii')
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
  assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr
  assert 'warning: files cannot be read (9)' in done.stdout and 'file/s' in done.stderr
  assert json.loads(outputs['json'].read_text())['warnings']
  assert outputs['html'].read_text().startswith('<!DOCTYPE html>')
  command[2:] = [f'--input={folders[1]}', '--fail_on_warnings']
  done = subprocess.run(command, cwd=ROOT, capture_output=True)
  assert done.returncode == 1
