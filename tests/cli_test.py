"""Compiled programs are kept for the next command, where the user wants them."""

import os
import subprocess
import sys

from musiclm_jax import cli

PROGRAM = """
import os
from musiclm_jax import cli
def main():
  import jax, jax.numpy as jnp
  from jax._src import monitoring
  found = []
  monitoring.register_event_listener(lambda name, **_: found.append(name))
  jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((5, 5))).block_until_ready()
  print(found.count('/jax/compilation_cache/cache_hits'))
cli.run(main)
"""


def _run(environment):
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=environment, check=True, text=True,
                        stdout=subprocess.PIPE)
  return int(done.stdout)


def test_the_second_command_compiles_nothing(tmp_path):
  environment = {name: value for name, value in os.environ.items() if not name.startswith('JAX_')}
  environment |= {'JAX_PLATFORMS': 'cpu', 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
                  'XDG_CACHE_HOME': str(tmp_path)}
  assert _run(environment) == 0
  assert _run(environment) > 0
  assert list((tmp_path / 'musiclm_jax').rglob('*-cache'))


def test_what_the_user_set_stays(tmp_path):
  environment = {'JAX_COMPILATION_CACHE_DIR': 'gs://bucket/compiled'}
  cli.keep_compiled_programs(environment)
  assert environment == {'JAX_COMPILATION_CACHE_DIR': 'gs://bucket/compiled'}
  environment = {'XDG_CACHE_HOME': str(tmp_path), 'JAX_COMPILATION_CACHE_MAX_SIZE': '10'}
  cli.keep_compiled_programs(environment)
  assert environment['JAX_COMPILATION_CACHE_DIR'].startswith(str(tmp_path / 'musiclm_jax'))
  assert environment['JAX_COMPILATION_CACHE_MAX_SIZE'] == '10'
