"""Voices reach the written pitches, in their own manner."""

import dataclasses

import numpy as np
import pytest

from musiclm_jax.corpus import singing

NOTES = [singing.SungNote(0.0, 0.8, 57.0), singing.SungNote(1.0, 1.9, 64.0)]
PLAIN = singing.Manner(glide=0.03, vibrato=0.0, vibrato_rate=5.0, mistuning=0.0, offset=0.0, wander=0.0)


def _curve(**changes):
  return singing.pitch_curve(
      NOTES, 2.0, dataclasses.replace(PLAIN, **changes), np.random.default_rng(0))


def test_the_curve_slides_from_note_to_note():
  curve = _curve()
  assert curve.shape == (200,)
  np.testing.assert_allclose(curve[:100], 57.0, atol=1e-6)  # held until the next begins
  assert 57.5 < curve[102] < 63.5 and (np.diff(curve[99:120]) >= -1e-9).all()
  np.testing.assert_allclose(curve[130:], 64.0, atol=0.01)
  assert _curve(glide=0.1)[105] < curve[105]


def test_vibrato_comes_late_and_offsets_stay():
  moved = _curve(vibrato=0.5) - _curve()
  np.testing.assert_allclose(moved[:15], 0, atol=1e-6)
  assert 0.4 < moved[60:100].max() <= 0.5 and -0.5 <= moved[60:100].min() < -0.4
  np.testing.assert_allclose(_curve(offset=-0.3), _curve() - 0.3, atol=1e-6)


def test_bends_are_the_way_from_the_written_note_to_the_curve():
  curve = _curve()
  bends = dict(singing.bends(NOTES, curve))
  assert list(bends) == sorted(bends)
  assert bends[0.5] == pytest.approx(0) and bends[1.5] == pytest.approx(0, abs=0.01)
  assert -7 < bends[1.02] < -0.5  # the slide up to the second note starts below it
  for second, semitones in bends.items():
    written = 57.0 if second < 1.0 else 64.0
    assert written + semitones == pytest.approx(np.interp(second, np.arange(200) / 100, curve))


def test_a_hum_has_the_pitch_of_the_notes_and_breathes_between():
  audio = singing.hum(NOTES, 2.0, PLAIN, np.random.default_rng(0))
  assert audio.dtype == np.float32 and audio.shape == (48_000,)
  for start, pitch in ((0.3, 57), (1.3, 64)):
    part = audio[round(start * 24_000):][:9_600] * np.hanning(9_600)
    spectrum = np.abs(np.fft.rfft(part))
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    around = spectrum[round(hertz * 0.4) - 3:round(hertz * 0.4) + 4].max()  # bins of 2.5 Hz
    # The loudest partial below 1.5 kHz is a multiple of the pitch, and the first one is there.
    loudest = np.argmax(spectrum[:600]) * 2.5 / hertz
    assert abs(loudest - round(loudest)) < 0.03 and around > 30 * np.median(spectrum)
  rest, sung = audio[round(0.93 * 24_000):round(0.97 * 24_000)], audio[7_200:16_800]
  assert 0 < rest.std() < 0.2 * sung.std()


def test_hummers_are_more_careless_than_singers():
  drawn = {careless: [singing.draw_manner(careless, np.random.default_rng(i)) for i in range(50)]
           for careless in (False, True)}
  for field in ('glide', 'mistuning', 'wander'):
    singers, hummers = ([getattr(m, field) for m in drawn[c]] for c in (False, True))
    assert np.mean(hummers) > 1.5 * np.mean(singers)
  assert {m.offset for m in drawn[False]} == {0.0}
