import numpy as np
import pytest

from musiclm_jax import errors
from musiclm_jax.corpus import render


def test_levels_are_met_without_clipping():
  noise = np.random.default_rng(0).standard_normal(48_000)
  quiet = render.level(noise, -24.0)
  assert abs(20 * np.log10(quiet.std()) + 24) < 0.2
  assert np.abs(render.level(noise, -3.0)).max() <= 0.97
  assert not render.level(np.zeros(100, np.float32), -20.0).any()


def test_a_fade_ends_in_silence():
  faded = render.fade(np.ones(48_000, np.float32), 0.5)
  assert abs(faded[-1]) < 1e-3 and faded[0] == 0 and faded[24_000] == 1


def test_no_soundfont_names_the_package(monkeypatch):
  monkeypatch.setattr(render, 'FOLDERS', ('/nowhere',))
  with pytest.raises(errors.UserError, match='apt install musescore-general-soundfont'):
    render.find_soundfonts([])


def test_a_file_that_is_no_soundfont_is_named(tmp_path):
  (tmp_path / 'a.sf2').write_bytes(b'hello')
  with pytest.raises(errors.UserError, match='a.sf2'):
    render.find_soundfonts([str(tmp_path / 'a.sf2')])


def test_lofi_dulls_the_sound():
  rng = np.random.default_rng(0)
  noise = 0.1 * rng.standard_normal(24_000)
  high = slice(9000, 12_000)
  before = np.abs(np.fft.rfft(noise))[high].mean()
  assert np.abs(np.fft.rfft(render.EFFECTS['lofi'](noise, rng)))[high].mean() < 0.5 * before
