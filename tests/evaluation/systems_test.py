"""Systems to compare with: folders are filled and gone on with; Mubert's API on loopback; pictures."""

import http.server
import json
import threading

import numpy as np
import pytest

from musiclm_jax import audio, errors
from musiclm_jax.evaluation.systems import filling, local, mubert, riffusion

CAPTIONS = {f'c{i}': f'song {i}' for i in range(5)}


class _Tones:
  """A system that plays a tone as high as its seed; it cannot do `song 2`."""

  batch_size = 2

  def __init__(self):
    self.calls = []

  def generate(self, ids, captions, seconds, seed):
    self.calls.append((tuple(ids), seed))
    if 'song 2' in captions:
      raise errors.UserError('no such song')
    time = np.arange(round(8_000 * seconds)) / 8_000
    return [filling.Sound((0.5 * np.sin(2 * np.pi * (100 + seed) * time)).astype(np.float32), 8_000)
            for _ in ids]


def test_a_folder_is_filled_and_gone_on_with(tmp_path):
  system = _Tones()
  failed = filling.fill(system, CAPTIONS, str(tmp_path), seconds=0.5, seed=7, progress=False)
  assert failed == {'c2': 'no such song', 'c3': 'no such song'}
  assert system.calls == [(('c0', 'c1'), 7), (('c2', 'c3'), 7), (('c4',), 7)]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['c0.wav', 'c1.wav', 'c4.wav']
  assert len(audio.read(str(tmp_path / 'c4.wav'), 8_000)) == 4_000
  before = (tmp_path / 'c0.wav').read_bytes()
  (tmp_path / 'c1.wav').unlink()
  again = _Tones()
  filling.fill(again, CAPTIONS, str(tmp_path), seconds=0.5, seed=7, progress=False)
  assert again.calls == system.calls[:2] and (tmp_path / 'c1.wav').exists()
  assert (tmp_path / 'c0.wav').read_bytes() == before


def test_names_that_lead_elsewhere_and_nothing_made_are_errors(tmp_path):
  for name in ('../a', '..', '/a', ''):
    with pytest.raises(errors.UserError, match='cannot be the name of a file'):
      filling.fill(_Tones(), {name: 'song'}, str(tmp_path / 'out'), progress=False)
  with pytest.raises(errors.UserError, match='nothing of 1 clips'):
    filling.fill(_Tones(), {'c2': 'song 2'}, str(tmp_path / 'out'), progress=False)
  assert not (tmp_path / 'out').exists()


def test_a_folder_is_copied_as_it_is(tmp_path):
  audio.write(tmp_path / 'a.flac', np.zeros(100, np.float32), 44_100)
  system = local.Folder({'c0': str(tmp_path / 'a.flac'), 'c1': str(tmp_path / 'none.wav')})
  failed = filling.fill(system, CAPTIONS, str(tmp_path / 'out'), progress=False)
  assert sorted(failed) == ['c1', 'c2', 'c3', 'c4'] and failed['c2'] == 'there is no file for c2'
  assert (tmp_path / 'out' / 'c0.flac').read_bytes() == (tmp_path / 'a.flac').read_bytes()


# --- Mubert -----------------------------------------------------------------------------------


class _Api(http.server.BaseHTTPRequestHandler):
  """Mubert's API as documented: a track is pending when asked for, and done the second time."""

  def log_message(self, *_):
    pass

  def _answer(self, status, content, **headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.end_headers()
    self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

  def _track(self, status, url=None):
    generation = {'session_id': 's', 'format': 'wav', 'bitrate': 320, 'status': status, 'url': url}
    self._answer(200, {'data': {'id': 'track 1', 'duration': 15, 'generations': [generation]}})

  def do_POST(self):
    body = json.loads(self.rfile.read(int(self.headers['content-length'])))
    self.server.requests.append((self.path, dict(self.headers), body))
    if self.headers['access-token'] != 'secret':
      self._answer(401, {'message': 'Unauthenticated', 'code': 'Unauthenticated'})
    elif body['prompt'] == 'elsewhere':
      self._answer(302, b'', Location='http://127.0.0.1:1/')
    elif body['prompt'] == 'noise':
      self._answer(200, b'no json')
    elif body['prompt'] == 'broken':
      self._track('failed')
    elif body['prompt'] == 'a file':
      self._track('done', 'file:///etc/passwd')
    else:
      self._track('pending')

  def do_GET(self):
    self.server.requests.append((self.path, dict(self.headers), None))
    if self.path == '/api/public/tracks/track%201':
      self._track('done', f'http://127.0.0.1:{self.server.server_port}/track.wav')
    else:
      self._answer(200, b'RIFF, and so on')


@pytest.fixture
def server():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Api)
  server.requests = []
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


def _client(server, token='secret'):
  return mubert.Mubert({mubert.CUSTOMER: 'me', mubert.TOKEN: token},
                       f'http://127.0.0.1:{server.server_port}/api', poll_seconds=0.01)


def test_mubert_is_asked_waited_for_and_downloaded_without_the_token(server):
  sound, = _client(server).generate(['c0'], ['word ' * 100], 10.0, 0)
  assert sound.content == b'RIFF, and so on' and sound.suffix == '.wav'
  (path, headers, body), (polled, *_), (track, last, _) = server.requests
  assert (path, polled, track) == (
      '/api/public/tracks', '/api/public/tracks/track%201', '/track.wav')
  assert body == {'prompt': ('word ' * 40).strip(), 'duration': 15, 'bitrate': 320, 'format': 'wav',
                  'intensity': 'high', 'mode': 'track'}
  headers, last = ({key.lower(): value for key, value in found.items()} for found in (headers, last))
  assert headers['customer-id'] == 'me' and 'access-token' in headers
  assert 'access-token' not in last and 'customer-id' not in last


@pytest.mark.parametrize('prompt, message', [
    ('elsewhere', 'status 302'), ('noise', 'not the answer wanted'), ('broken', 'the track is failed'),
    ('a file', 'wanted an https address')])
def test_answers_that_cannot_be_used_are_errors_of_one_caption(server, prompt, message):
  with pytest.raises(errors.UserError, match=message):
    _client(server).generate(['c0'], [prompt], 10.0, 0)


def test_mubert_without_an_account(server):
  with pytest.raises(errors.UserError, match='status 401.*Unauthenticated'):
    _client(server, token='wrong').generate(['c0'], ['song'], 10.0, 0)
  with pytest.raises(errors.UserError, match='set MUBERT_CUSTOMER_ID and MUBERT_ACCESS_TOKEN'):
    mubert.Mubert({})


def test_a_track_that_never_comes_is_given_up(server):
  client = mubert.Mubert({mubert.CUSTOMER: 'me', mubert.TOKEN: 'secret'},
                         f'http://127.0.0.1:{server.server_port}/api', patience_seconds=-1)
  with pytest.raises(errors.UserError, match='no track after'):
    client.generate(['c0'], ['song'], 10.0, 0)


# --- Riffusion --------------------------------------------------------------------------------

PICTURE = riffusion.PictureConfig(sample_rate=8_000, num_mels=64, max_frequency=4_000.0, iterations=8)


def test_a_line_in_a_picture_is_a_tone_of_its_height():
  picture = np.full((64, 80, 3), 255, np.uint8)  # 0.8 s of silence: light
  picture[64 - 1 - 20] = 0  # mel 20 from below
  waveform = riffusion.to_waveform(picture, PICTURE)
  assert abs(len(waveform) / 8_000 - 0.8) < 0.02 and np.abs(waveform).max() == pytest.approx(1)
  spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
  peak = np.fft.rfftfreq(len(waveform), 1 / 8_000)[spectrum.argmax()]
  mels = 2595 * np.log10(1 + 4_000 / 700) * np.arange(66) / 65
  centre = 700 * (10 ** (mels[21] / 2595) - 1)
  assert peak == pytest.approx(centre, rel=0.05)


def test_dark_is_loud_by_the_fourth_root():
  picture = np.array([[255, 0], [128, 255]], np.uint8)
  wanted = [[(127 / 255) ** 4, 0.0], [0.0, 1.0]]  # low mels first
  np.testing.assert_allclose(riffusion.magnitudes(picture, PICTURE), wanted, rtol=1e-5)
  with pytest.raises(errors.UserError, match='2 rows, wanted 64'):
    riffusion.to_waveform(picture, PICTURE)


def test_a_directory_that_is_no_pipeline_is_named(tmp_path):
  with pytest.raises(errors.UserError, match='no model_index.json'):
    riffusion.Riffusion(tmp_path)
