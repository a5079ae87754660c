"""L5. TensorFlow SavedModels of audio, as TF-Hub has them, from a local or gs:// directory.

A SavedModel is a graph of TensorFlow's own operations, which runs: no Python comes with it, but
operations exist that read and write files.  Those, and the ones that call Python, are refused; what
saves and restores variables, which every SavedModel has, cannot be.  Load only what you trust.
"""

import hashlib

import numpy as np
from etils import epath

from musiclm_jax import errors

GRAPH_FILE = 'saved_model.pb'
_WEIGHTS = 'variables'
_REFUSED = frozenset({
    'PyFunc', 'PyFuncStateless', 'EagerPyFunc', 'ReadFile', 'WriteFile', 'MatchingFiles',
    'WholeFileReader', 'WholeFileReaderV2', 'TextLineReader', 'TextLineReaderV2',
    'FixedLengthRecordReader', 'FixedLengthRecordReaderV2', 'TFRecordReader', 'TFRecordReaderV2',
    'TextLineDataset', 'TFRecordDataset', 'TFRecordDatasetV2', 'FixedLengthRecordDataset',
    'FixedLengthRecordDatasetV2', 'SaveDataset', 'SaveDatasetV2', 'LoadDataset', 'SnapshotDataset',
    'SnapshotDatasetV2', 'DebugIdentityV2', 'DebugIdentityV3', 'PrintV2', 'SqlDataset'})


class SavedModel:
  """A SavedModel that is called as a function; its `fingerprint` says which graph and weights."""

  def __init__(self, directory: str):
    self.directory = directory
    files = _files(epath.Path(directory))
    _check_operations(files[GRAPH_FILE], directory)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
      digest.update(f'{name}\0'.encode())
      with path.open('rb') as stream:
        while block := stream.read(1 << 20):
          digest.update(block)
    self.fingerprint = digest.hexdigest()
    import tensorflow as tf
    try:
      self._model = tf.saved_model.load(str(directory))
    except (ValueError, OSError, RuntimeError, KeyError, AttributeError, tf.errors.OpError) as error:
      raise errors.UserError(f'{directory} cannot be loaded as a SavedModel: {error}') from error
    if not callable(self._model):
      raise errors.UserError(f'{directory} is a SavedModel that cannot be called, wanted one as '
                             'TF-Hub has it, with __call__')

  def __call__(self, *inputs, **named):
    """Returns what the model gives for numpy arrays or numbers; its failure is a UserError."""
    import tensorflow as tf
    try:
      return self._model(*inputs, **named)
    except (ValueError, TypeError, tf.errors.OpError) as error:
      raise errors.UserError(f'{self.directory} does not take this: {error}'[:300]) from error

  def array(self, output, name: str, width: int | None = None) -> np.ndarray:
    """Returns f32[N, D] of one output; another shape than [N, width] is an error."""
    if not hasattr(output, 'numpy'):
      raise errors.UserError(
          f'{self.directory}: {name} is a {type(output).__name__}, wanted a tensor')
    found = np.asarray(output, np.float32)
    if found.ndim != 2 or (width and found.shape[1] != width):
      raise errors.UserError(f'{self.directory}: {name} is {list(found.shape)}, wanted '
                             f'[N, {width or "D"}]')
    if not len(found):
      raise errors.UserError(f'{self.directory}: {name} is empty, the clip is too short for it')
    return found


def _files(directory: epath.Path) -> dict[str, epath.Path]:
  """Returns {name: path} of the graph and the weights."""
  graph = directory / GRAPH_FILE
  if not directory.exists():
    raise errors.UserError(f'{directory} does not exist, wanted the directory of a SavedModel')
  if not graph.exists():
    raise errors.UserError(f'{directory} has no {GRAPH_FILE}, wanted the directory of a SavedModel')
  weights = directory / _WEIGHTS
  found = {GRAPH_FILE: graph}
  if weights.exists():
    found |= {f'{_WEIGHTS}/{path.name}': path for path in weights.iterdir() if not path.is_dir()}
  return found


def _check_operations(path: epath.Path, directory: str) -> None:
  """Raises an error for a graph with operations that call Python, or read or write files."""
  from google.protobuf import message
  from tensorflow.core.protobuf import saved_model_pb2
  description = saved_model_pb2.SavedModel()
  try:
    description.ParseFromString(path.read_bytes())
  except message.DecodeError as error:
    raise errors.UserError(f'{path} is not a SavedModel: {error}') from error
  names = set()
  for graph in description.meta_graphs:
    names |= {node.op for node in graph.graph_def.node}
    names |= {node.op for function in graph.graph_def.library.function
              for node in function.node_def}
  if refused := sorted(names & _REFUSED):
    raise errors.UserError(f'{directory} holds operations that reach outside the graph '
                           f'({", ".join(refused)}): refused')
