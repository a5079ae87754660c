import numpy as np

from musiclm_jax import generate
from musiclm_jax.evaluation import chroma, generation_modes


def test_a_click_at_the_seams_is_found_and_smooth_music_has_none():
  rate, random = 8000, np.random.default_rng(0)
  music = np.convolve(random.standard_normal(20 * rate), np.hanning(9), 'same') * 0.05
  smooth = generation_modes.seams(music, rate, [4, 8, 12, 16])
  assert 0.1 < smooth.rank < 0.9 and smooth.largest < 1.3 and smooth.seams == 4
  clicking = music.copy()
  clicking[np.array([4, 8, 12, 16]) * rate] += 0.5
  found = generation_modes.seams(clicking, rate, [4, 8, 12, 16])
  assert found.rank > 0.99 and found.largest > 2


def test_sections_are_compared_with_all_texts(system):
  musiclm = generate.MusicLM.from_pretrained(system)
  story = generate.Story(((0, 'slow piano'), (2, 'loud rock')))
  waveforms = 0.3 * np.random.default_rng(0).standard_normal((2, 4 * 24_000)).astype(np.float32)
  found = generation_modes.story_similarities(musiclm, story, waveforms)
  assert found.shape == (2, 2)
  own = musiclm.similarity([story, story], waveforms)
  np.testing.assert_allclose(np.trace(found) / 2, own.mean(), atol=1e-5)


def test_music_with_and_without_a_tune_has_the_same_prompts_and_seeds(musiclm):
  rate = musiclm.sample_rate
  time = np.arange(2 * rate) / rate
  tunes = {name: 0.1 * np.sin(2 * np.pi * hertz * time).astype(np.float32)
           for name, hertz in (('low', 220.0), ('high', 660.0))}
  followed = generation_modes.follow(musiclm, tunes, 'piano', num_samples=2)
  for i, name in enumerate(tunes):
    again = musiclm.generate(['piano'] * 2, seconds=2, seed=200 + i)
    np.testing.assert_array_equal(followed.unconditioned[name], again)
    assert followed.made[name].shape == again.shape == (2, 2 * rate)
    assert (followed.made[name] != again).any()
  report = chroma.measure(list(tunes.values()), list(followed.made.values()),
                          list(followed.unconditioned.values()), rate)
  np.testing.assert_array_equal(followed.similarity.own, report.own)
  np.testing.assert_array_equal(followed.similarity.unconditioned, report.unconditioned)
  assert report.own.shape == report.unconditioned.shape == (2, 2)
