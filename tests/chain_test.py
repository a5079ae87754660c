"""The whole chain at the smallest size, through the entry functions and gin files people use:
audio -> records -> four models -> tokenizers -> token records -> three stages -> a wav."""

import json
import pathlib

import numpy as np
import pytest
import soundfile

from musiclm_jax import (
    fit_quantizers,
    gin_utils,
    prepare_audio,
    text,
    token_layout,
    train,
)
from musiclm_jax.corpus import melody_records
from musiclm_jax.extraction import extract, shards
from musiclm_jax.generation_jobs import one_prompt

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 2
SMALL = {
    'soundstream': [
        'SoundStreamConfig.channels = 2', 'SoundStreamConfig.channel_multipliers = (1, 2, 2, 4)',
        'SoundStreamConfig.dilations = ((), (1,), (1,), ())', 'SoundStreamConfig.dim = 16',
        'SoundStreamConfig.codebook_size = 32', 'SoundStreamConfig.num_quantizers = 4',
    ],
    'w2v_bert': [
        'W2vBertConfig.emb_dim = 16', 'W2vBertConfig.num_heads = 2', 'W2vBertConfig.head_dim = 8',
        'W2vBertConfig.mlp_dim = 32', 'W2vBertConfig.contrastive_layers = 1',
        'W2vBertConfig.prediction_layers = 1', 'W2vBertConfig.feature_layer = 1',
        'W2vBertConfig.conv_channels = 4', 'CROP_SECONDS = 4.0',
    ],
    'melody': [
        'EncoderConfig.num_layers = 1', 'EncoderConfig.emb_dim = 16', 'EncoderConfig.num_heads = 2',
        'EncoderConfig.mlp_dim = 32', 'MelodyConfig.embedding_dim = 16', 'melody.melody.kinds = None',
    ],
    'mulan': [
        'ResNetConfig.stage_sizes = (1, 1)', 'ResNetConfig.widths = (8, 16)',
        'ResNetConfig.stem_width = 8', 'EncoderConfig.num_layers = 1', 'EncoderConfig.emb_dim = 16',
        'EncoderConfig.num_heads = 2', 'EncoderConfig.mlp_dim = 32',
    ],
}
DECODER = [
    'DecoderConfig.num_layers = 1', 'DecoderConfig.emb_dim = 16', 'DecoderConfig.num_heads = 2',
    'DecoderConfig.head_dim = 8', 'DecoderConfig.mlp_dim = 32',
]
STREAMS = [
    "mulan/TokenStream.num_levels = 2", "mulan/TokenStream.codebook_size = 8",
    "semantic/TokenStream.codebook_size = 16", "acoustic/TokenStream.codebook_size = 32",
    "acoustic/TokenStream.num_levels = 4", 'TokenLayout.coarse_levels = 2',
    'melody/TokenStream.num_levels = 2', 'melody/TokenStream.codebook_size = 4',
]


def _write_corpus(directory: pathlib.Path) -> None:
  """Writes eight clips of 12 s: a chord of partials that beats at its own tempo, with a caption."""
  (directory / 'audio').mkdir(parents=True)
  random = np.random.default_rng(0)
  lines = []
  for i in range(8):
    time = np.arange(12 * 24_000) / 24_000
    pitch = 110 * 2 ** (i / 8)
    waveform = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 5))
    waveform = waveform * (0.2 + 0.1 * np.sin(2 * np.pi * (1 + i) * time))
    waveform += 0.01 * random.standard_normal(len(time))
    soundfile.write(directory / 'audio' / f'{i}.flac', 0.5 * waveform, 24_000)
    lines.append({
        'id': f'clip{i}', 'path': f'audio/{i}.flac', 'split': 'test' if i == 7 else 'train',
        'captions': [f'a {"low" if i < 4 else "high"} organ tone number {i}'], 'aspects': [],
        'piece': f'piece{i}', 'seconds': 12.0, 'source': 'made here', 'licence': 'CC0-1.0'})
  # Two halves of a clip are versions of its melody.
  (directory / 'melodies.csv').write_text('path,melody,start,seconds,kind\n' + ''.join(
      f'audio/{i}.flac,tune{i},{start},6,{kind}\n'
      for i in range(8) for start, kind in ((0, 'instrument'), (6, 'hum'))))
  (directory / 'corpus.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def _train(name: str, folder: pathlib.Path, bindings: list[str]) -> pathlib.Path:
  """Runs gin/runs/NAME_tiny.gin for a few steps; returns the exported model's directory."""
  output = folder / 'models' / name
  bindings = [
      f"WORKDIR = '{folder / 'runs' / name}'", f'TOTAL_STEPS = {STEPS}', 'BATCH_SIZE = 2',
      'LOG_EVERY = 1', 'EVAL_EVERY = 100', f'EXPORT_DIR = "{output}"', 'EVAL_DATASET = None',
      *bindings,
  ]
  gin_utils.load([str(ROOT / f'gin/runs/{name}_tiny.gin')], [b.replace(' = ', '=', 1) for b in bindings])
  state = train.train(**gin_utils.arguments(train.train), config_text=gin_utils.config_text())
  assert int(state.step) == STEPS
  return output


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp('chain')
  _write_corpus(folder / 'corpus')
  prepare_audio.prepare_audio(
      input_dir=str(folder / 'corpus'), output_dir=str(folder / 'records'), progress=False)
  text.train_vocabulary(
      text.read_captions(str(folder / 'corpus' / 'corpus.jsonl')), 200, str(folder / 'vocab.txt'))
  melody_records.write_records(
      input_dir=str(folder / 'corpus'), table=str(folder / 'corpus' / 'melodies.csv'),
      output_dir=str(folder / 'melodies'), test_fraction=0.0)
  return folder


def test_chain(folder):
  data = f"DATA_DIR = '{folder / 'records'}'"
  for name in ('soundstream', 'w2v_bert'):
    _train(name, folder, [data, *SMALL[name]])
  _train('melody', folder, [f"DATA_DIR = '{folder / 'melodies'}'", *SMALL['melody']])
  _train('mulan', folder, [data, f"VOCAB_FILE = '{folder / 'vocab.txt'}'", *SMALL['mulan']])
  models = folder / 'models'
  records = str(folder / 'records')
  fit_quantizers.fit_semantic_quantizer(
      str(models / 'w2v_bert'), records, str(models / 'semantic_quantizer'), num_clusters=16)
  fit_quantizers.fit_mulan_quantizer(
      str(models / 'mulan'), records, str(models / 'mulan_quantizer'), num_quantizers=2,
      codebook_size=8)
  fit_quantizers.fit_melody_quantizer(
      str(models / 'melody'), records, str(models / 'melody_quantizer'), num_quantizers=2,
      codebook_size=4)
  manifest = extract.extract(
      shards.Job(input=records, waveforms=True, models=str(models), output=str(folder / 'tokens'),
                 coarse_levels=2), progress=False)
  assert manifest['clips'] == 7 + 1

  for stage in token_layout.STAGES:
    _train(stage, folder, [f"TOKENS_DIR = '{folder / 'tokens'}'", *STREAMS, *DECODER])

  tune = str(folder / 'corpus' / 'audio' / '3.flac')
  request = one_prompt.Request('a low organ tone', seconds=3, melody=tune)
  names = one_prompt.generate_files(request, str(folder / 'out.wav'), model=str(models))
  waveform, rate = soundfile.read(names[0])
  assert rate == 24_000 and waveform.shape == (3 * 24_000,)
  assert np.isfinite(waveform).all()
  first = pathlib.Path(names[0]).read_bytes()
  one_prompt.generate_files(request, str(folder / 'out.wav'), model=str(models))
  assert pathlib.Path(names[0]).read_bytes() == first, 'the same seed gives the same file'
