"""A crop of music with one of its captions as wordpieces."""

import numpy as np
import pytest

from musiclm_jax import text
from musiclm_jax.data import datasets, feature_converters, records, vocabularies
from tasks import music_text

CAPTIONS = {1: ['slow piano'], 2: ['fast rock drums', 'loud rock'], 3: [],
            4: ['slow ' * 50]}


@pytest.fixture(scope='module')
def setting(tmp_path_factory):
  path = tmp_path_factory.mktemp('records')
  records.write_shard(path / records.shard_name('train', 0, 1), [
      records.waveform_record(str(r), np.full(2400, r / 32768), captions)
      for r, captions in CAPTIONS.items()])
  records.write_info(path, {'kind': 'waveforms'})
  text.train_vocabulary([c for captions in CAPTIONS.values() for c in captions], 100,
                        str(path / 'vocab.txt'))
  return path, str(path / 'vocab.txt')


def test_tokens_are_those_of_a_caption_of_the_same_record(setting):
  path, vocab_file = setting
  task = music_text.music_text(path, vocabularies.WordPieceVocabulary(vocab_file), 0.05, 8)
  dataset = datasets.SeqioDataset(task, feature_converters.MusicTextFeatureConverter())
  iterator = dataset.iterator(6, seed=0)
  tokenizer = text.WordPieceTokenizer(vocab_file)
  wanted = {r: tokenizer.encode(captions, 8).tolist()
            for r, captions in CAPTIONS.items() if captions}
  seen = set()
  for _ in range(5):
    batch = next(iterator)
    assert batch['waveform'].shape == (6, 1200) and batch['waveform'].dtype == np.float32
    assert batch['text_tokens'].shape == (6, 8) and batch['text_tokens'].dtype == np.int32
    for waveform, ids in zip(batch['waveform'], batch['text_tokens'].tolist(), strict=True):
      record = round(float(waveform[0]) * 32768)
      assert ids in wanted[record]
      seen.add((record, tuple(ids)))
  assert len(seen) == 4  # every caption of every record; record 3 has none and is left out
