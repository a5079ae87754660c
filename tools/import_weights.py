"""Writes a MuLan to train further, with the text tower of a BERT, the audio tower of an AST, or both.

DIR is a directory as Hugging Face writes it: config.json, model.safetensors and, of a BERT, vocab.txt.
"""

from musiclm_jax import cli

EXAMPLES = r"""
python tools/import_weights.py --text=bert-base-uncased \
  --audio=ast-finetuned-audioset-10-10-0.4593 --output=models/mulan_start
python tools/import_weights.py --text=bert-base-uncased --output=models/mulan_start --seed=1
python tools/train.py --gin_file=gin/runs/mulan_ast.gin --gin_file=models/mulan_start/model.gin \
  --gin.INIT_FROM=models/mulan_start --gin.VOCAB_FILE=models/mulan_start/vocab.txt \
  --gin.WORKDIR=runs/mulan --gin.DATA_DIR=data/records
"""


def main() -> None:
  parser = cli.parser(__doc__, EXAMPLES)
  parser.add_argument('--text', metavar='DIR', help='a BERT-type model, for the text tower')
  parser.add_argument('--audio', metavar='DIR', help='an AST, for the audio tower')
  parser.add_argument('--output', required=True, help='directory for the exported model')
  parser.add_argument('--seed', type=cli.seed, default=0,
                      help='of what is freshly initialised; default: %(default)s')
  parser.add_argument('--vocab_file', help='vocab.txt of a new text tower; only without --text')
  parser.add_argument(
      '--patch_stride', type=cli.positive,
      help="frames and bands between the AST's patches; default: its own, a larger one is faster",
  )  # fmt: skip
  flags = parser.parse_args()
  if not flags.text and not flags.audio:
    parser.error('nothing to import: give --text, --audio or both')
  if flags.patch_stride and not flags.audio:
    parser.error('--patch_stride does not apply without --audio')
  if flags.text and flags.vocab_file:
    parser.error('--vocab_file does not apply with --text, which has its own')
  if not flags.text and not flags.vocab_file:
    parser.error('the text tower needs a vocabulary: give --text, or --vocab_file for a new one')

  from musiclm_jax.pretrained import mulan

  lines = mulan.import_towers(
      flags.output, flags.text, flags.audio, flags.vocab_file, flags.seed, flags.patch_stride)
  print('\n'.join([*lines, f'{flags.output}: a mulan; {mulan.GIN_FILE} in it says how to train it']))


if __name__ == '__main__':
  cli.run(main)
