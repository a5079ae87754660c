"""L4. The corpus as a whole: the plan, the workers, the files."""

import collections
import dataclasses
import json
import math
import os

import numpy as np

from musiclm_jax import errors
from musiclm_jax.audio import SAMPLE_RATE
from musiclm_jax.corpus import (
  captions,
  compose,
  render,
  render_pool,
  scores,
  styles,
  text_sources,
  user_audio,
)
from musiclm_jax.corpus.render import CLIP_SECONDS

_LICENCES = """\
What the audio and captions of this folder were made from.

Compositions: written by musiclm_jax.corpus (Apache-2.0 code); the pieces themselves are CC0-1.0.
Captions: written by musiclm_jax.corpus from the facts of each piece, CC0-1.0.
Soundfonts:
{soundfonts}
Given scores (field "source" of corpus.jsonl names each): {scores}
Human drum performances: {drums}
Your own audio: {folder}

corpus.jsonl gives source, licence and credits for every clip.
"""


@dataclasses.dataclass(frozen=True)
class PieceSpec:
  """One piece to make. Everything random in it comes from (seed, index)."""

  index: int
  genre: str
  split: str
  num_clips: int
  seed: int
  scores: tuple = ()  # candidates, tried in order
  performances: tuple = ()  # (source, style, bpm) candidates

  @property
  def name(self) -> str:
    return f'{self.genre.replace(" ", "_").replace("-", "")}_{self.index:05d}'


def plan(
  hours: float, seed: int, test_share: float, score_files=(), performances=()
) -> list[PieceSpec]:
  """Returns the pieces: genres in turn, the split drawn within each genre, sources held apart."""
  rng = np.random.default_rng([seed, 1])
  score_pools = _divide(score_files, lambda s: s.stem, test_share, rng)
  drum_pools = _divide(performances, lambda p: p[0].name, test_share, rng)
  names = list(styles.STYLES)
  wanted = max(1, math.ceil(hours * 3600 / CLIP_SECONDS - 1e-9)) if hours > 0 else 0
  specs, total, seen = [], 0, collections.Counter()
  offsets = dict(zip(names, (rng.permutation(len(names)) + 0.5) / len(names), strict=True))
  while total < wanted:
    for genre in rng.permutation(names):
      if total >= wanted:
        break
      genre = str(genre)
      k = seen[genre]
      seen[genre] += 1
      is_test = math.floor((k + 1) * test_share + offsets[genre]) > math.floor(
        k * test_share + offsets[genre]
      )
      split = 'test' if is_test else 'train'
      num_clips = min(int(rng.choice([1, 2, 3], p=[0.62, 0.3, 0.08])), wanted - total)
      specs.append(
        _spec(len(specs), genre, split, num_clips, seed, score_pools[split], drum_pools[split], rng)
      )
      total += num_clips
  return specs


def _spec(index, genre, split, num_clips, seed, score_pool, drum_pool, rng) -> PieceSpec:
  style = styles.STYLES[genre]
  chosen, fitting = (), ()
  if score_pool and rng.random() < style.scores:
    picks = rng.permutation(len(score_pool))[:3]
    chosen = tuple(score_pool[i] for i in picks)
  if style.grooves:
    fitting = [p for p in drum_pool if p[1].startswith(style.grooves)]
    fitting = tuple(fitting[i] for i in rng.permutation(len(fitting))[:6])
  return PieceSpec(index, genre, split, num_clips, seed, chosen, fitting)


def _divide(items, key, test_share: float, rng) -> dict[str, list]:
  """Returns {'train': [...], 'test': [...]} so that no score or drum take is in both."""
  items = sorted(items, key=key)
  order = rng.permutation(len(items))
  num_test = max(1, round(len(items) * test_share)) if items and test_share > 0 else 0
  return {
    'test': [items[i] for i in sorted(order[:num_test])],
    'train': [items[i] for i in sorted(order[num_test:])],
  }


def make_piece(spec: PieceSpec, renderer: render.Renderer, output: str) -> list[dict]:
  """Renders one piece, writes its clips and returns their rows."""
  import soundfile

  rng = np.random.default_rng([spec.seed, 2, spec.index])
  seconds = spec.num_clips * CLIP_SECONDS
  piece = _arranged(spec, seconds, rng)
  if piece is None:
    piece = compose.compose(spec.genre, seconds, rng, _takes(spec))
  font = renderer.soundfonts[int(rng.integers(len(renderer.soundfonts)))]
  audio = renderer.render(piece, seconds, font, rng)
  rows = []
  for clip in range(spec.num_clips):
    facts = captions.clip_facts(piece, clip * CLIP_SECONDS, (clip + 1) * CLIP_SECONDS)
    if not facts.instruments:
      continue
    name = f'{spec.name}_{clip}'
    size = int(CLIP_SECONDS * SAMPLE_RATE)
    part = render.fade(audio[clip * size : (clip + 1) * size], float(rng.uniform(0.4, 1.5)))
    path = os.path.join(output, 'audio', name + '.flac')
    soundfile.write(path, part, SAMPLE_RATE, subtype='PCM_16', format='FLAC')
    texts, aspects, phrasings = captions.write(facts, spec.split == 'test', rng)
    rows.append(
      {
        'id': name,
        'path': f'audio/{name}.flac',
        'split': spec.split,
        'captions': texts,
        'aspects': aspects,
        'texts': text_sources.write(
          facts, texts, aspects, spec.split == 'test',
          np.random.default_rng([spec.seed, 6, spec.index, clip])),
        'piece': spec.name,
        'seconds': CLIP_SECONDS,
        'source': piece.source,
        'licence': piece.licence,
        'metadata': {
          'seed': spec.seed,
          'genre': piece.genre,
          'mood': piece.mood,
          'bpm': piece.bpm,
          'metre': piece.metre,
          'key': facts.key,
          'instruments': {r: i.name for r, i in facts.instruments.items()},
          'drums': facts.drum_feel or None,
          'soundfont': os.path.basename(font),
          'credits': list(piece.credits),
          'chords': piece.chord_labels(clip * CLIP_SECONDS, (clip + 1) * CLIP_SECONDS),
          'phrasings': phrasings,
        },
      }
    )
  return rows


def _arranged(spec: PieceSpec, seconds: float, rng):
  for source in spec.scores:
    try:
      return scores.arrange(source, spec.genre, seconds, rng)
    except errors.UserError:
      continue  # too sparse, or broken: the next candidate, at last an own composition
  return None


def _takes(spec: PieceSpec) -> list:
  """Returns the drum performances that can be played; short and broken ones are left out."""
  takes = []
  for performance in spec.performances:
    try:
      takes.append(scores.read_performance(*performance))
    except errors.UserError:
      continue
  return [t for t in takes if t]


def build(
  *,
  output: str,
  hours: float,
  seed: int = 0,
  scores_path: str | None = None,
  drums_path: str | None = None,
  soundfonts: list[str] | None = None,
  test_share: float = 0.1,
  workers: int = 1,
  add_folder: str | None = None,
  captions_csv: str | None = None,
) -> list[dict]:
  """Writes the corpus to `output` and returns its rows; the same for any number of workers."""
  _check(output, hours, test_share, workers, add_folder, captions_csv)
  added = user_audio.read_table(add_folder, captions_csv) if add_folder else []
  specs = []
  if hours > 0:
    render.load_fluidsynth()
    soundfonts = render.find_soundfonts(soundfonts or [])
    specs = plan(
      hours,
      seed,
      test_share,
      scores.list_scores(scores_path) if scores_path else (),
      scores.list_performances(drums_path) if drums_path else (),
    )
  os.makedirs(os.path.join(output, 'audio'), exist_ok=True)
  # The user's files come first: one that cannot be read costs seconds, not the hours of rendering.
  own = user_audio.add(added, output, test_share, seed) if added else []
  rows = _render_all(specs, soundfonts, output, workers) + own
  _write_texts(output, rows, soundfonts or [], scores_path, drums_path, add_folder)
  return rows


def _check(output, hours, test_share, workers, add_folder, captions_csv):
  if not math.isfinite(hours) or hours < 0 or (hours == 0 and not add_folder):
    raise errors.UserError(
      f'--hours={hours} must be a positive number (or 0 together with --add_folder)'
    )
  if not 0 <= test_share < 1:
    raise errors.UserError(f'--test_share={test_share} must be at least 0 and below 1')
  if workers < 1:
    raise errors.UserError(f'--workers={workers} must be at least 1')
  if bool(add_folder) != bool(captions_csv):
    raise errors.UserError('--add_folder=DIR and --captions=CSV are given together or not at all')
  if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
    raise errors.UserError(
      f'--output={output!r} is not an empty folder; name a new one or empty it'
    )


def _render_all(specs, soundfonts, output, workers) -> list[dict]:
  from tqdm import tqdm

  rows = []
  if not specs:
    return rows
  with tqdm(total=sum(s.num_clips for s in specs), unit='clip', desc='rendering') as bar:
    done = render_pool.make_all(make_piece, specs, soundfonts, output, workers)
    for spec, made in zip(specs, done, strict=True):
      rows += made
      bar.update(spec.num_clips)
  return rows


def _write_texts(output, rows, soundfonts, scores_path, drums_path, add_folder):
  names = [os.path.basename(f) for f in soundfonts]
  fonts = [f'  {n}: {render.KNOWN.get(n, ("licence unknown",))[0]}' for n in names]
  used = sorted({r['licence'] for r in rows if r['source'] != 'own composition'})
  groove = any(r.get('metadata', {}).get('credits') for r in rows)
  text = _LICENCES.format(
    soundfonts='\n'.join(fonts) or '  none',
    scores=', '.join(used) if scores_path and used else 'none',
    drums='Groove MIDI Dataset by Google LLC, CC-BY-4.0 (looped, re-timed and re-voiced)'
    if groove
    else 'none',
    folder='as you provided it' if add_folder else 'none',
  )
  os.makedirs(os.path.join(output, 'LICENCES'), exist_ok=True)
  hours = sum(r['seconds'] for r in rows) / 3600
  readme = (
    f'{len(rows)} clips, {hours:.2f} hours, 24 kHz mono flac in audio/.\n'
    'corpus.jsonl: one JSON object per clip (id, path, split, captions, aspects, texts, piece, seconds, '
    'source, licence, metadata).\nLICENCES/README.txt: what the audio was made from.\n'
  )
  for name, content in (
    ('LICENCES/README.txt', text),
    ('README.txt', readme),
    ('corpus.jsonl', ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows)),
  ):
    with open(os.path.join(output, name), 'w', encoding='utf-8') as f:
      f.write(content)
