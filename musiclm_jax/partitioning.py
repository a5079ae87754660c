"""L2. The mesh, the ONE table from logical axes to mesh axes, and the shardings of state and batch.

No other file writes a PartitionSpec: arrays are named where they are made, and mapped here.
"""

import contextlib
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from musiclm_jax import errors

MESH_AXES = ('data', 'fsdp', 'model')

# logical axis of an array -> mesh axis (or axes, or None: whole on every device).  An axis of the
# mesh is used once per array, by the first dimension that asks for it.
LOGICAL_AXIS_RULES = (
    ('batch', ('data', 'fsdp')),
    ('lookup_batch', 'data'),  # of ids, while 'embed' is still split over fsdp
    ('length', None),
    ('embed', 'fsdp'),
    ('mlp', 'model'),
    ('heads', 'model'),
    ('kv', None),
    ('vocab', 'model'),
    ('layers', None),
    ('conv_in', None),  # small, and split over fsdp the compiler gathers activations instead
    ('conv_out', 'model'),
    ('kernel', None),
    ('codes', None),
    ('code_dim', None),
    ('mel', None),
    ('joint', None),
)


def make_mesh(shape: tuple[int, int, int] = (-1, 1, 1), devices: Any = None) -> Mesh:
  """Returns the mesh ('data', 'fsdp', 'model'); one entry may be -1 and takes what is left."""
  devices = jax.devices() if devices is None else list(devices)
  shape = tuple(shape)
  wanted = f'mesh shape {shape} over {MESH_AXES}'
  if len(shape) != len(MESH_AXES) or shape.count(-1) > 1 or any(n < 1 and n != -1 for n in shape):
    raise errors.UserError(f'{wanted}: wanted three positive numbers, at most one of them -1')
  known = int(np.prod([n for n in shape if n != -1]))
  if len(devices) % known or (-1 not in shape and known != len(devices)):
    raise errors.UserError(f'{wanted} does not fit {len(devices)} devices')
  shape = tuple(len(devices) // known if n == -1 else n for n in shape)
  try:
    grid = mesh_utils.create_device_mesh(shape, devices)
  except NotImplementedError:  # an axis of the mesh is part of one of the TPU's torus
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def activate(mesh: Mesh):
  """Inside, nn.with_logical_constraint resolves names on `mesh`; enter it outside of jit."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_AXIS_RULES):
    yield mesh


def check_batch_size(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
  """Raises a UserError when a batch cannot be split evenly over the devices that share it."""
  num_shards = mesh.shape['data'] * mesh.shape['fsdp']
  if batch_size < 1 or batch_size % (num_shards * microbatches):
    parts = f' in {microbatches} microbatches' if microbatches > 1 else ''
    raise errors.UserError(
        f'batch_size {batch_size} is not divisible by {num_shards} devices'
        f' (data {mesh.shape["data"]} x fsdp {mesh.shape["fsdp"]}){parts}'
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first dimension over data and fsdp."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def shard_rows(tree: Any, axis: int) -> Any:
  """Returns `tree`, inside of jit, with `axis` of every array over data and fsdp."""
  spec = PartitionSpec(*(None,) * axis, ('data', 'fsdp'))
  return jax.lax.with_sharding_constraint(tree, jax.tree.map(lambda _: spec, tree))


def parts(name: str) -> int:
  """Returns over how many devices of the active mesh a logical axis goes; 1 without a mesh."""
  axes = dict(LOGICAL_AXIS_RULES)[name] or ()
  sizes = jax.sharding.get_abstract_mesh().shape
  axes = (axes,) if isinstance(axes, str) else axes
  return int(np.prod([sizes.get(axis, 1) for axis in axes]))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def host_shard(mesh: Mesh, host: int | None = None) -> tuple[int, int]:
  """Returns (shard index, number of shards) of the global batch that this host must read.

  Hosts that share rows, because the model axis crosses hosts, get the same shard.  Rows of a shard
  need not follow each other: on a TPU slice a host's chips are a block of the torus.
  """
  parts = _host_parts(mesh)
  shards = sorted(set(parts.values()))
  if len(set(map(len, shards))) > 1 or len(set().union(*shards)) != sum(map(len, shards)):
    raise errors.UserError(
        f'mesh {dict(mesh.shape)}: hosts share some rows of the batch and not others;'
        ' wanted a model axis within a host, or over whole hosts'
    )
  host = jax.process_index() if host is None else host
  return shards.index(parts[host]), len(shards)


def shard_owner(mesh: Mesh) -> int:
  """Returns the first of the hosts that read this host's shard."""
  parts = _host_parts(mesh)
  return min(host for host in parts if parts[host] == parts[jax.process_index()])


@functools.lru_cache
def _host_parts(mesh: Mesh) -> dict[int, tuple[int, ...]]:
  """Returns, for every host, which of the data x fsdp parts of a batch its devices hold."""
  num_parts = mesh.shape['data'] * mesh.shape['fsdp']
  parts = {}
  for device, (rows,) in batch_sharding(mesh).devices_indices_map((num_parts,)).items():
    parts.setdefault(device.process_index, set()).add(rows.start or 0)
  return {host: tuple(sorted(found)) for host, found in parts.items()}


def global_batch(batch: dict[str, np.ndarray], batch_size: int, mesh: Mesh) -> dict[str, jax.Array]:
  """Returns the global arrays [batch_size, ...] of which `batch` holds this host's rows."""
  _, num_shards = host_shard(mesh)
  sharding = batch_sharding(mesh)

  def to_global(name, array):
    array = np.asarray(array)
    if array.shape[:1] != (batch_size // num_shards,):
      raise errors.UserError(
          f'the dataset gave {name!r} of shape {array.shape},'
          f' wanted {batch_size // num_shards} rows'
      )
    return jax.make_array_from_process_local_data(
        sharding, array, (batch_size, *array.shape[1:])
    )

  return {name: to_global(name, array) for name, array in batch.items()}


def to_host(tree: Any) -> Any:
  """Returns `tree` as numpy arrays; what other hosts hold parts of is gathered, on all of them.

  Every device then holds all of an array for a moment: for what is small.
  """

  def gather(leaf):
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
      return multihost_utils.process_allgather(leaf, tiled=True)
    return jax.device_get(leaf)

  return jax.tree.map(gather, tree)


def logical_names(boxed: Any) -> set[str]:
  """Returns every logical axis name on the boxed parameters."""
  specs = jax.tree.leaves(
      nn.get_partition_spec(boxed), is_leaf=lambda spec: isinstance(spec, PartitionSpec)
  )
  axes = [axis for spec in specs if isinstance(spec, PartitionSpec) for axis in spec]
  names = [axis if isinstance(axis, tuple) else (axis,) for axis in axes]
  return {name for group in names for name in group if name is not None}


def param_shardings(boxed: Any, mesh: Mesh) -> Any:
  """Returns a plain tree of NamedShardings for boxed parameters (arrays or their shapes).

  A dimension that its mesh axes do not divide stays whole.
  """
  unknown = logical_names(boxed) - {name for name, _ in LOGICAL_AXIS_RULES}
  if unknown:
    raise ValueError(f'logical axes {sorted(unknown)} are not in partitioning.LOGICAL_AXIS_RULES')
  shardings = nn.logical_to_mesh_sharding(
      nn.get_partition_spec(boxed), mesh, LOGICAL_AXIS_RULES
  )
  return jax.tree.map(_divisible, nn.unbox(boxed), shardings)


def _divisible(shape: Any, sharding: NamedSharding) -> NamedSharding:
  sizes = sharding.mesh.shape
  axes = []
  for length, axis in zip(shape.shape, sharding.spec, strict=False):
    names = axis if isinstance(axis, tuple) else (axis,)
    parts = int(np.prod([sizes[name] for name in names if name is not None]))
    axes.append(axis if length % parts == 0 else None)
  return NamedSharding(sharding.mesh, PartitionSpec(*axes))


def like_params(tree: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
  """Returns shardings for `tree` (an optimizer state): where a leaf mirrors a parameter, its own.

  {'mu': {'w': f32[4, 8]}, 'count': i32[]} with {'w': ('fsdp', 'model')} gives
  {'mu': {'w': ('fsdp', 'model')}, 'count': ()}.  A leaf mirrors a parameter when its path ends with
  the parameter's and its shape is the same.
  """
  known = {}
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  for (path, leaf), sharding in zip(flat, jax.tree.leaves(shardings), strict=True):
    known[path] = (leaf.shape, sharding)
  depths = sorted({len(path) for path in known}, reverse=True)

  def find(path, leaf):
    for depth in depths:
      shape, sharding = known.get(path[len(path) - depth :], (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(find, tree)
