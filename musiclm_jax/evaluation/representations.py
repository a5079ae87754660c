"""L5. Whether the representation models carry what they must, on pieces they have not heard.

Semantic tokens: timbre and harmony (semantic_content.py).  MuLan: which text goes with which audio
(text_audio_retrieval.py).  Melody embeddings: who else plays the same tune (melody_retrieval.py).
"""

import dataclasses
import json
import os
import pathlib

from musiclm_jax import audio, errors, music_tokens
from musiclm_jax.evaluation import codec_quality, corpus_clips, semantic_content
from musiclm_jax.evaluation import text_audio_retrieval as retrieval


@dataclasses.dataclass(frozen=True)
class Report:
  """Everything measured; `left_out` names what was not, and why."""

  probes: list[semantic_content.Probe]
  retrievals: list[retrieval.Retrieval]
  gap: music_tokens.TextAudioGap | None
  melody: object | None  # melody_retrieval's report
  left_out: list[str]


def evaluate(
    *,
    model_dir: str | os.PathLike,
    waveforms_dir: str,
    corpus: str | os.PathLike,
    tokens_dir: str | None = None,
    melodies_dir: str | None = None,
    max_clips: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Report:
  """Returns what the models of a directory know of a corpus; those it lacks are left out.

  Args:
    model_dir: exported w2v_bert and semantic_quantizer; mulan and mulan_quantizer; melody.
    waveforms_dir: waveform records with the splits train and test.
    corpus: the corpus.jsonl they were made from.
    tokens_dir: token records of the same clips: their semantic tokens are taken, none are made.
    melodies_dir: melody records; without them, melody is left out.
    max_clips: of each split; all by default.
    seed: of everything drawn.
    progress: show bars.
  """
  from musiclm_jax.data import records
  directory = pathlib.Path(model_dir)
  if not directory.is_dir():
    raise errors.UserError(f'{directory} does not exist, wanted a directory of exported models')
  rows = corpus_clips.read_rows(corpus)
  records.read_info(waveforms_dir, 'waveforms')
  left_out, probed, retrievals, gap, melody = [], [], [], None, None
  missing = {name for name in ('w2v_bert', 'semantic_quantizer', 'mulan', 'mulan_quantizer')
             if not (directory / name).exists()}
  lacks = f'{directory} holds no'
  if tokens_dir or not missing & {'w2v_bert', 'semantic_quantizer'}:
    source = (semantic_content.RecordedTokens(tokens_dir, directory) if tokens_dir
              else semantic_content.ModelTokens(directory))
    probed, unlabelled = semantic_content.measure(
        rows, waveforms_dir, source, max_clips=max_clips, seed=seed, progress=progress)
    left_out += unlabelled
  else:
    names = ' and no '.join(sorted(missing & {'w2v_bert', 'semantic_quantizer'}))
    left_out.append(f'semantic tokens: {lacks} {names}')
  if 'mulan' in missing:
    left_out.append(f'retrieval by MuLan: {lacks} mulan')
  else:
    retrievals, gap = retrieval.measure(
        rows, waveforms_dir, directory, max_clips=max_clips, progress=progress)
    if gap is None:
      left_out.append(f'gap between text and audio: {lacks} mulan_quantizer')
  if melodies_dir:
    from musiclm_jax.evaluation import melody_retrieval
    melody = melody_retrieval.evaluate(str(directory / 'melody'), melodies_dir)
  else:
    left_out.append('retrieval by melody: no melody records are given')
  return Report(probed, retrievals, gap, melody, left_out)


def tables(report: Report) -> str:
  """Returns the report as tables in markdown, then what was left out."""
  parts = []
  for task in dict.fromkeys(probe.task for probe in report.probes):
    found = [(p.representation, p.accuracy) for p in report.probes if p.task == task]
    first = found[0][1]
    lines = [(name, f'{a.accuracy:.3f} ± {a.error:.3f}', f'{a.balanced:.3f}') for name, a in found]
    chance = ('chance', f'{first.majority:.3f}', f'{1 / first.num_labels:.3f}')
    parts.append(
        f'{task}: {first.num_labels} labels, {first.num_train} spans to fit, {first.num_test} held '
        f'out\n\n' + codec_quality.table(('linear probe of', 'accuracy', 'balanced'),
                                         [*lines, chance]))
  if report.retrievals:
    lines = [(f'{r.direction}, {r.audio}', *(f'{value:.2f}' for value in r.recall))
             for r in report.retrievals]
    first = report.retrievals[0]
    lines.append(('chance', *(f'{value:.3f}' for value in first.chance)))
    parts.append(f'MuLan, {first.num_clips} clips held out\n\n' + codec_quality.table(
        ('retrieval', *(f'recall@{k}' for k in retrieval.RECALL_AT)), lines))
  if report.gap:
    parts.append(report.gap.describe())
  if report.melody:
    melody = report.melody
    lines = [(kind, f'{value:.2f}') for kind, value in melody.by_kind.items()]
    parts.append(f'melody, {melody.num_melodies} tunes held out\n\n' + codec_quality.table(
        ('retrieval', 'recall@1'),
        [('all', f'{melody.recall_at_1:.2f}'), *lines, ('chance', f'{melody.chance:.3f}')]))
  parts += [f'left out: {line}' for line in report.left_out]
  return '\n\n'.join(parts)


def write_json(path: str | os.PathLike, report: Report) -> None:
  """Writes every figure of a report; an existing file is replaced."""
  with audio.atomic_path(path, overwrite=True) as temporary:
    pathlib.Path(temporary).write_text(
        json.dumps(dataclasses.asdict(report), indent=2) + '\n', encoding='utf-8')
