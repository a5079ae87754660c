"""Cuts the clips beside this file out of the corpus that the shipped models were trained on.

  python tests/pretrained/held_out/make.py CORPUS

CORPUS is the output of the command in musiclm_jax/pretrained/tiny/MODEL_CARD.md.  Taken are the
seconds 10 to 20 of the first held-out clip of each genre, own compositions without borrowed drums
only, so that everything here is CC0-1.0; with the longest caption of each.
"""

import json
import pathlib
import sys

import soundfile

HERE = pathlib.Path(__file__).parent


def main(corpus: pathlib.Path) -> None:
  rows = [json.loads(line) for line in (corpus / 'corpus.jsonl').read_text().splitlines()]
  chosen = {}
  for row in rows:
    own = row['licence'] == 'CC0-1.0' and row['source'] == 'own composition'
    if row['split'] == 'test' and own and not row['metadata']['credits']:
      chosen.setdefault(row['metadata']['genre'], row)
  lines = []
  for row in chosen.values():
    waveform, rate = soundfile.read(corpus / row['path'], start=240_000, stop=480_000)
    soundfile.write(HERE / f'{row["id"]}.ogg', waveform, rate, format='OGG', subtype='VORBIS')
    lines.append(json.dumps({'id': row['id'], 'caption': max(row['captions'], key=len)}))
  (HERE / 'captions.jsonl').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
