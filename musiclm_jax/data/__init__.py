"""SeqIO and TensorFlow live here and in tasks/, nowhere below.

TensorFlow is imported with the process's stderr closed: its C++ parts print lines about CPU
features and absent GPUs while they load, which no log level reaches, and a tool answers bad input
with one line.
"""

import os


def _import_quietly() -> None:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nothing, 2)
    import seqio  # noqa: F401
    import tensorflow_text  # noqa: F401
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)
    os.close(nothing)


_import_quietly()
