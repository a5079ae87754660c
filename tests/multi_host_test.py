"""Real processes on CPU: two hosts train, stop and resume as one; nothing is written twice.

Three launches of tests/multi_host_worker.py, each of eight devices: two hosts, then one, then two
again, which go on with each other's runs.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from musiclm_jax import checkpoints, gin_utils, multi_host, token_layout, train
from musiclm_jax.data import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
FSDP, BOTH, MODEL = (1, 8, 1), (2, 4, 1), (1, 2, 4)


def launch(folder, name, jobs, num_hosts):
  """Returns (arrays of NAME.npz by name, stderr of each host, files each host opened to write)."""
  output = folder / name
  output.mkdir()
  commands = [[sys.executable, 'tests/multi_host_worker.py', json.dumps(jobs), str(output)]]
  logs = together(commands * num_hosts, folder, devices=8 // num_hosts)
  arrays = {path.stem: list(np.load(path).values()) for path in output.glob('*.npz')}
  opened = [json.loads((output / f'opened_{n}.json').read_text()) for n in range(num_hosts)]
  return types.SimpleNamespace(arrays=arrays, logs=logs, opened=opened)


def together(commands, folder, devices=1, send=None, code=0):
  """Runs one process per command, as hosts of one run, and returns what they said on stderr.

  `send`: (text, host, signal): when the first host has said `text`, `host` gets the signal.
  `code`: with which all must end.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
      'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'), 'PYTHONPATH': str(ROOT),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }  # fmt: skip
  logs = [folder / f'stderr_{n}' for n in range(len(commands))]
  processes = []
  for index, (command, log) in enumerate(zip(commands, logs, strict=True)):
    environment |= {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}', 'JAX_NUM_PROCESSES': str(len(commands)),
        'JAX_PROCESS_ID': str(index)}  # fmt: skip
    with log.open('w') as stderr:
      processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr))
  try:
    deadline = time.monotonic() + 180
    while any(process.poll() is None for process in processes):
      assert time.monotonic() < deadline, '\n'.join(log.read_text()[-4000:] for log in logs)
      if send and send[0] in logs[0].read_text():
        processes[send[1]].send_signal(send[2])
        send = None
      time.sleep(0.02)
  finally:
    for process in processes:
      process.kill()
      process.wait()
  said = [log.read_text() for log in logs]
  codes = [process.returncode for process in processes]
  assert set(codes) == {code}, '\n'.join([str(codes)] + [text[-4000:] for text in said])
  return said


def job(name, folder, steps, mesh=FSDP, **options):
  return {'job': 'run', 'name': name, 'workdir': str(folder / 'runs' / name), 'steps': steps,
          'mesh': mesh, **options}  # fmt: skip


def restoring(name, folder, run, mesh):
  return {'job': 'restore', 'name': name, 'workdir': str(folder / 'runs' / run), 'mesh': mesh}


LONG = {'steps': 60, 'checkpoint_every': 1000}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='module')
def first(folder):
  """Two hosts of four devices."""
  return launch(folder, 'first', [
      {'job': 'scattered_rows'},
      {'job': 'create', 'mesh': FSDP},
      {'job': 'run_apart', 'workdir': str(folder / 'apart')},
      job('whole', folder, 4),
      job('halves', folder, 2),
      job('shared', folder, 2, mesh=(1, 1, 8), evaluate=True),
      job('undisturbed', folder, **LONG),
      job('stopped', folder, stop=[1, 3, 'SIGTERM'], **LONG),
  ], 2)  # fmt: skip


@pytest.fixture(scope='module')
def alone(folder, first):
  """One host of eight devices."""
  shutil.copytree(folder / 'runs' / 'whole', folder / 'runs' / 'moved')
  return launch(folder, 'alone', [
      job('one', folder, 4),
      restoring('both', folder, 'whole', BOTH),
      restoring('model', folder, 'whole', MODEL),
      job('moved', folder, 6, mesh=BOTH),
      job('stopped_alone', folder, stop=[0, 3, 'SIGTERM'], **LONG),
  ], 1)  # fmt: skip


@pytest.fixture(scope='module')
def second(folder, alone):
  """Two hosts again."""
  for path in (folder / 'runs' / 'whole' / 'checkpoints' / '4').rglob('shard_1_of_2*/position'):
    path.write_text('not a number')
  return launch(folder, 'second', [
      restoring('from_one', folder, 'one', MODEL),
      job('one', folder, 6),
      job('halves', folder, 4),
      job('whole', folder, 5),
      job('stopped', folder, **LONG),
      job('interrupted', folder, stop=[0, 3, 'SIGINT'], **LONG),
  ], 2)  # fmt: skip


def steps(folder, run):
  return sorted(int(path.name) for path in (folder / 'runs' / run / 'checkpoints').iterdir())


def losses(workdir):
  lines = (workdir / 'metrics.csv').read_text().splitlines()
  return [float(line.split(',')[2]) for line in lines if ',train/loss,' in line]


def same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x, y)


def test_two_hosts_train_as_one(folder, first, alone):
  """Also with a model axis over both hosts, where both read the whole batch."""
  assert len(losses(folder / 'runs' / 'whole')) == 4
  np.testing.assert_allclose(losses(folder / 'runs' / 'whole'), losses(folder / 'runs' / 'one'), rtol=1e-5)
  np.testing.assert_allclose(losses(folder / 'runs' / 'shared'), losses(folder / 'runs' / 'one')[:2], rtol=1e-5)
  for a, b in zip(first.arrays['whole'], alone.arrays['one'], strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def positions(folder, run, step, what='position'):
  path = folder / 'runs' / run / 'checkpoints' / str(step) / 'data'
  return {found.parent.name: int(found.read_text()) for found in path.rglob(what)}


def test_each_shard_of_the_data_has_one_position(folder, first):
  assert positions(folder, 'halves', 2) == {'shard_0_of_2_batch_8': 2, 'shard_1_of_2_batch_8': 2}
  assert positions(folder, 'shared', 2) == {'shard_0_of_1_batch_16': 2}


def test_a_restart_of_both_hosts_is_the_undisturbed_run(first, second):
  same(second.arrays['halves'], first.arrays['whole'])


def test_a_signal_to_one_host_stops_both_at_one_step(folder, first, second):
  for name, launched in (('stopped', first), ('interrupted', second)):
    said = [[line for line in log.splitlines() if 'stopped at step' in line]
            for log in launched.logs]  # fmt: skip
    assert len(said[0]) == 1 and said[0] == said[1], said
    step = int(said[0][0].split('step ')[1].split()[0])
    assert 3 <= step < 60
    assert step in steps(folder, name)


def test_a_signal_to_the_only_host_stops_it_at_once(folder, alone):
  assert 'stopped at step 3 of 60' in alone.logs[0]
  assert steps(folder, 'stopped_alone') == [3]


def test_an_error_of_one_host_ends_both_soon(folder):
  start = time.monotonic()
  jobs = [job('failed', folder, 9, stop=[1, 3, 'error'])]
  command = [sys.executable, 'tests/multi_host_worker.py', json.dumps(jobs), str(folder)]
  logs = together([command] * 2, folder, devices=4, code=1)
  assert 'these rows are bad' in logs[1] and 'these rows are bad' not in logs[0]
  assert time.monotonic() - start < 60  # of the 300 that JAX waits


def test_a_workdir_that_hosts_do_not_share_is_named(folder, first):
  for log in first.logs:
    assert f'refused: host 1 of 2 has no {folder}/apart_' in log
  assert not list(folder.glob('apart_*/checkpoints'))


def test_a_stopped_run_goes_on_bit_for_bit(folder, first, second):
  same(second.arrays['stopped'], first.arrays['undisturbed'])
  tables = [(folder / 'runs' / run / 'metrics.csv').read_text() for run in ('stopped', 'undisturbed')]
  assert tables[0] == tables[1]


def test_other_meshes_and_other_numbers_of_hosts_restore_the_same_state(first, alone, second):
  same(alone.arrays['both'], first.arrays['whole'])
  same(alone.arrays['model'], first.arrays['whole'])
  same(second.arrays['from_one'], alone.arrays['one'])


def test_with_other_hosts_the_data_goes_on_in_a_new_order_and_the_log_says_so(folder, alone, second):
  cases = (
      ('moved', alone, 'shard_0_of_2_batch_8 and 1 more, but host 0 of 1 reads shard_0_of_1_batch_16'),
      ('one', second, 'shard_0_of_1_batch_16, but host 0 of 2 reads shard_0_of_2_batch_8'),
  )
  seeds = {}
  for run, launched, wanted in cases:
    assert f'step 4 has data positions of {wanted}' in launched.logs[0]
    assert set(positions(folder, run, 4, 'seed').values()) == {0}
    assert set(positions(folder, run, 6).values()) == {2}
    assert len(losses(folder / 'runs' / run)) == 6
    seeds[run] = positions(folder, run, 6, 'seed').values()
  assert len(seeds['moved']) == 1 and len(seeds['one']) == 2
  assert len({0, *seeds['moved'], *seeds['one']}) == 2  # one new order, that of (seed, step)
  assert 'but host 1 of 2 reads shard_1_of_2_batch_8' in second.logs[1]


def test_what_one_host_cannot_read_no_host_restores(folder, second):
  assert 'checkpoints/4 cannot be read: host 1 could not' in second.logs[0]
  assert 'moved damaged checkpoint 4' in second.logs[0]
  assert 'moved damaged' not in second.logs[1]
  assert len(losses(folder / 'runs' / 'whole')) == 5
  assert steps(folder, 'whole') == [2, 4, 5]


def test_every_file_has_one_writer(folder, first):
  mine, other = first.opened
  assert all('/checkpoints/' in path for path in other if '/runs/' in path), other
  assert {path.rsplit('/', 1)[1] for path in mine} >= {'metrics.csv', 'model.json'}
  assert len(list((folder / 'runs' / 'shared' / 'tensorboard').iterdir())) == 1
  lines = (folder / 'runs' / 'shared' / 'metrics.csv').read_text().splitlines()
  keys = [line.rsplit(',', 1)[0] for line in lines]
  assert '2,eval/mse' in keys and len(set(keys)) == len(keys)
  assert 'step 4/4' in first.logs[0] and 'step 4/4' not in first.logs[1]


@pytest.mark.parametrize('given, wanted', [
    ({}, 'got none'),
    ({'JAX_COORDINATOR_ADDRESS': 'localhost:1'}, 'got JAX_COORDINATOR_ADDRESS: Number of proc'),
    ({'JAX_NUM_PROCESSES': 'two'}, "JAX_NUM_PROCESSES is 'two', wanted a number"),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'}, 'wanted 0 <= id < number'),
    ({'JAX_COORDINATOR_ADDRESS': 'localhost'}, "is 'localhost', wanted host:port"),
])  # fmt: skip
def test_hosts_that_cannot_be_found_are_named(given, wanted):
  program = f'from musiclm_jax import multi_host; multi_host.connect({given!r})'  # before any device
  environment = {name: value for name, value in os.environ.items()
                 if name not in (multi_host.ADDRESS, multi_host.COUNT, multi_host.INDEX)}
  done = subprocess.run([sys.executable, '-c', program], env=environment, cwd=ROOT, text=True,
                        stderr=subprocess.PIPE, check=False)
  assert done.returncode and wanted in done.stderr.splitlines()[-1], done.stderr
  assert 'errors.UserError' in done.stderr.splitlines()[-1]


# --- The command line, on token records ---------------------------------------------------------


@pytest.fixture(scope='module')
def tokens(tmp_path_factory):
  """Two train shards and one test shard of six 12 s records; records differ."""
  path, random = tmp_path_factory.mktemp('tokens'), np.random.default_rng(0)
  layout = token_layout.TokenLayout(
      mulan=token_layout.TokenStream('mulan', 6, 64, 0),
      semantic=token_layout.TokenStream('semantic', 1, 512, 25),
      acoustic=token_layout.TokenStream('acoustic', 8, 1024, 50), coarse_levels=4)
  for split, index, count in (('train', 0, 2), ('train', 1, 2), ('test', 0, 1)):
    records.write_shard(path / records.shard_name(split, index, count), [
        records.token_record(f'{split}{index}{n}', {
            'mulan_tokens': random.integers(64, size=(3, 6)),
            'mulan_embeddings': random.standard_normal((3, 8)).astype(np.float16),
            'semantic_tokens': random.integers(512, size=300),
            'acoustic_tokens': random.integers(1024, size=(600, 8))}) for n in range(6)])
  token_layout.write_layout(path, layout, dict.fromkeys(('mulan', 'semantic', 'acoustic'), 'a'))
  np.save(path / records.CODEBOOKS_FILE, random.standard_normal((6, 64, 8)).astype(np.float32))
  records.write_info(path, {'kind': 'tokens', 'window_seconds': 10})
  return path


GIN = 'gin/runs/semantic_tiny.gin'
STEPS = 100


def bindings(workdir, tokens):
  decoder = {'num_layers': 1, 'emb_dim': 16, 'head_dim': 8, 'mlp_dim': 16, 'query_chunk': 16}
  return [
      f'WORKDIR={workdir}', f'TOKENS_DIR={tokens}', f'TOTAL_STEPS={STEPS}', 'BATCH_SIZE=4',
      'CROP_SECONDS=1.0', 'MESH_SHAPE=(1,-1,1)', 'LOG_EVERY=1', 'CHECKPOINT_EVERY=1000',
      'token_layout.TokenLayout.melody=None', 'EVAL_EVERY=1000', 'EVAL_BATCHES=1', f'EXPORT_DIR={workdir}/exported',
      *(f'transformer.DecoderConfig.{name}={value}' for name, value in decoder.items()),
  ]  # fmt: skip


def train_together(folder, workdir, tokens, send=None):
  command = [sys.executable, 'tools/train.py', '--distributed', f'--gin_file={GIN}']
  command += [f'--gin.{each}' for each in bindings(workdir, tokens)]
  return together([command] * 2, folder, send=send)


@pytest.fixture(scope='module')
def undisturbed(folder, tokens):
  train_together(folder, folder / 'cli' / 'undisturbed', tokens)
  return folder / 'cli' / 'undisturbed'


@pytest.fixture(scope='module')
def stopped(folder, tokens):
  """A run whose second host gets a SIGTERM: (workdir, stderr of both)."""
  workdir = folder / 'cli' / 'stopped'
  return workdir, train_together(folder, workdir, tokens, ('step 3/', 1, signal.SIGTERM))


def state_of(workdir, step):
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    path = workdir / 'checkpoints' / str(step) / 'state'
    tree = checkpointer.metadata(path).item_metadata.tree
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(path, args=ocp.args.PyTreeRestore(tree, arguments))


def test_sigterm_to_one_host_of_a_real_run(stopped):
  workdir, logs = stopped
  found = [int(path.name) for path in (workdir / 'checkpoints').iterdir()]
  assert len(found) == 1 and 3 <= found[0] < STEPS
  assert all(f'stopped at step {found[0]} of {STEPS}' in log for log in logs)
  assert not (workdir / 'exported').exists()


@pytest.mark.slow
def test_the_restarted_run_ends_bit_for_bit_as_the_undisturbed_one(
    folder, tokens, stopped, undisturbed):
  workdir, _ = stopped
  logs = train_together(folder, workdir, tokens)
  assert all('restored step' in log for log in logs)
  wanted, found = state_of(undisturbed, STEPS), state_of(workdir, STEPS)
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  assert (workdir / 'metrics.csv').read_text() == (undisturbed / 'metrics.csv').read_text()
  models = [checkpoints.load_model(path / 'exported') for path in (workdir, undisturbed)]
  assert models[0].fingerprint == models[1].fingerprint


class Joined:
  """Both hosts' batches of a dataset as those of one."""

  def __init__(self, dataset):
    self.dataset = dataset

  def iterator(self, batch_size, seed, shard_index, num_shards):
    assert (shard_index, num_shards) == (0, 1)
    self.parts = [self.dataset.iterator(batch_size // 2, seed, n, 2) for n in range(2)]
    return self

  def __next__(self):
    batches = [next(part) for part in self.parts]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

  def save(self, path):
    """Keeps no position: the run is never resumed."""


@pytest.mark.slow
def test_two_hosts_with_shards_of_token_records_train_as_one(tmp_path, tokens, undisturbed):
  gin_utils.load([ROOT / GIN], bindings(tmp_path, tokens))
  arguments = gin_utils.arguments(train.train)
  arguments |= {'dataset': Joined(arguments['dataset']), 'eval_dataset': None, 'total_steps': 20}
  train.train(**arguments | {'export_dir': None})
  found = losses(tmp_path)
  assert len(found) == 20
  np.testing.assert_allclose(found, losses(undisturbed)[:20], rtol=1e-4)
