"""SeqIO and TensorFlow live here and in tasks/, nowhere below.

TensorFlow is started here with the process's stderr closed: its C++ parts print lines about CPU
features and absent GPUs, which no log level reaches, and a tool answers bad input with one line.
"""

import contextlib
import os


def _start_tensorflow() -> None:
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  stderr, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  try:
    os.dup2(nothing, 2)
    import seqio  # noqa: F401
    import tensorflow as tf
    import tensorflow_text  # noqa: F401

    # Leaves the accelerators to JAX: TensorFlow would otherwise take all their memory.
    with contextlib.suppress(RuntimeError):  # it is already in use by the caller, who has decided
      tf.config.set_visible_devices([], 'GPU')
  finally:
    os.dup2(stderr, 2)
    os.close(stderr)
    os.close(nothing)


_start_tensorflow()
