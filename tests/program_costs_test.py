"""FLOPs and collectives counted: by hand, and on programs that eight devices share."""

import os
import subprocess
import sys
import textwrap

import absent_gpus
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from musiclm_jax import program_costs
from musiclm_jax.models import attention


def flops(function, *shapes):
  return program_costs.flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)))


def test_products_and_convolutions_by_hand():
  assert flops(lambda a, b: jnp.tanh(a @ b), (3, 4), (4, 5)) == 2 * 3 * 4 * 5
  assert flops(lambda a, b: jnp.einsum('bij,bjk->bik', a, b), (7, 3, 4), (7, 4, 5)) == 7 * 120
  conv = lambda x, k: jax.lax.conv_general_dilated(
      x, k, (2,), 'VALID', dimension_numbers=('NTC', 'TIO', 'NTC'))
  assert flops(conv, (2, 9, 3), (5, 3, 8)) == 2 * (2 * 3 * 8) * (5 * 3)  # 3 frames of 8 outputs
  grouped = lambda x, k: jax.lax.conv_general_dilated(
      x, k, (1,), 'VALID', dimension_numbers=('NTC', 'TIO', 'NTC'), feature_group_count=4)
  assert flops(grouped, (1, 5, 4), (5, 1, 4)) == 2 * 4 * 5


def test_loops_count_as_often_as_they_run_and_choices_by_the_dearest():
  step = lambda x, w: (jax.nn.relu(x @ w), None)
  scan = lambda x, w: jax.lax.scan(step, x, w)[0]
  assert flops(scan, (2, 4), (24, 4, 4)) == 24 * 2 * 2 * 4 * 4
  assert flops(jax.jit(lambda x, w: scan(scan(x, w), w)), (2, 4), (3, 4, 4)) == 2 * 3 * 64
  choice = lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)
  assert flops(choice, (2, 4), (4, 4)) == 2 * 64
  loop = lambda x, w: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, x)
  with pytest.raises(ValueError, match='FLOPs of while cannot be counted'):
    flops(loop, (2, 4), (4, 4))


def test_a_kernel_counts_at_every_point_of_its_grid():
  def kernel(x, y, out):
    @pl.when(pl.program_id(1) > 0)
    def _():
      out[...] = x[...] @ y[...]

  whole = pl.BlockSpec((8, 8), lambda i, j: (0, 0))
  call = pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct((8, 8), jnp.float32), grid=(3, 2),
                        in_specs=[whole, whole], out_specs=whole)
  assert flops(call, (8, 8), (8, 8)) == 6 * 2 * 8 ** 3


@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 1, 2)])
def test_cudnns_attention_counts_as_the_products_it_stands_for(monkeypatch, shape):
  """Forward two of them, backward five: it makes the scores again. On all devices together."""
  batch, heads, length, dim = 4, 2, 10, 8
  zeros = lambda *sizes: jnp.zeros(sizes, jnp.bfloat16)
  query, key = zeros(batch, heads, length, dim), zeros(batch, heads, dim, length)
  mask = jnp.tril(jnp.ones((length, length), bool))

  def fused(query, key, value):
    return attention.fused_attention(query, key, value, mask, None, heads, causal=True)

  def loss(*args):
    return jnp.sum(jnp.square(fused(*args).astype(jnp.float32)))

  product = 2 * batch * heads * length * length * dim
  with absent_gpus.mesh(monkeypatch, shape):
    forward = jax.make_jaxpr(fused)(query, key, query)
    both = jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(query, key, query)
  assert 'dot_general' not in str(both)
  assert program_costs.flops(forward) == 2 * product
  assert program_costs.flops(both) == 7 * product
  assert program_costs.flops(jax.make_jaxpr(fused)(query, key, query)) == 2 * product  # by XLA


@pytest.mark.parametrize('policy, wanted', [
    (jax.checkpoint_policies.everything_saveable, 3), (jax.checkpoint_policies.nothing_saveable, 4)])
def test_what_the_backward_pass_computes_again_counts(policy, wanted):
  """Of a chain of products: forward once, backward twice, and again what was not kept."""
  def layer(x, w):
    return jnp.tanh(jnp.tanh(x @ w) @ w)

  def loss(x, w):
    return jnp.sum(jax.checkpoint(layer, policy=policy)(x, w))

  found = flops(jax.grad(loss, (0, 1)), (8, 8), (8, 8))
  assert found in ((2 * wanted) * 1024, (2 * wanted - 1) * 1024)  # the last product's is not needed


HLO = """
HloModule jit_f, is_scheduled=true

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %two = s32[]{:T(128)} constant(2)
  %next = s32[] add(%i, %two)
  %async-collective-start = f32[64,16]{1,0} fusion(%x), kind=kOutput, calls=%gathering
  %inner = (s32[], f32[8,16]) tuple(%i, %x)
  %beside = (s32[], f32[8,16]) while(%inner), condition=%c, body=%inner_body, b={"known_trip_count":{"n":"5"}}
  %async-collective-done = f32[64,16]{1,0} fusion(%x), kind=kOutput, calls=%gathering.2
  %cp = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%x), channel_id=4
  %done = f32[8,16]{1,0} collective-permute-done(%cp)
  %slice = f32[1,16] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %t = (s32[], f32[8,16]) tuple(%next, %done)
}

%inner_body (p.3: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p.3 = (s32[], f32[8,16]) parameter(0)
  %x.3 = f32[8,16]{1,0} get-tuple-element(%p.3), index=1
  %fusion.7 = f32[64,16]{1,0} fusion(%x.3), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %same = (s32[], f32[8,16]) tuple(%p.3, %x.3)
}

%gathering (q: f32[8,16]) -> f32[64,16] {
  %q = f32[8,16]{1,0} parameter(0)
  ROOT %g = f32[64,16]{1,0} all-gather(%q), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

%async_collective_fusion.1 (q.1: f32[8,16]) -> f32[64,16] {
  %q.1 = f32[8,16]{1,0} parameter(0)
  ROOT %g.1 = f32[64,16]{1,0} all-gather(%q.1), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

%gathering.2 (q.2: f32[8,16]) -> f32[64,16] {
  %q.2 = f32[8,16]{1,0} parameter(0)
  ROOT %g.2 = f32[64,16]{1,0} all-gather(%q.2), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
}

%all-reduce-scatter.3 (q.3: f32[8,16]) -> f32[1,16] {
  %q.3 = f32[8,16]{1,0} parameter(0)
  %whole = f32[8,16]{1,0} all-reduce(%q.3), channel_id=7, replica_groups=[1,8]<=[8], to_apply=%add
  %zero.3 = s32[] constant(0)
  ROOT %part = f32[1,16]{1,0} dynamic-slice(%whole, %zero.3, %zero.3), dynamic_slice_sizes={1,16}
}

%condition (p.1: (s32[], f32[8,16])) -> pred[] {
  %p.1 = (s32[], f32[8,16]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %bound = s32[]{:T(128)} constant(7)
  ROOT %less = pred[] compare(%i.1, %bound), direction=LT
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

ENTRY %main (input: f32[8,16]) -> f32[8,16] {
  %input = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[8,16]) tuple(%zero, %input)
  %loop = (s32[], f32[8,16]) while(%start), condition=%condition, body=%body
  %y = f32[8,16]{1,0} get-tuple-element(%loop), index=1
  %rs = bf16[4,16]{1,0} reduce-scatter(%y), channel_id=5, replica_groups={{0,1},{2,3}}, to_apply=%add
  ROOT %ar = f32[8,16]{1,0} all-reduce(%y), channel_id=6, replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}, to_apply=%add
}
"""


CHOICE = """
%often (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
}

%once (p.1: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  %g = f32[64]{0} all-gather(%p.1), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %r.1 = f32[8]{0} all-reduce(%p.1), channel_id=3, replica_groups=[1,8]<=[8], to_apply=%add
}

ENTRY %main (a: f32[8], b: pred[]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %b = pred[] parameter(1)
  ROOT %c = f32[8]{0} conditional(%b, %a, %a), BRANCHES
}
"""


@pytest.mark.parametrize('branches', [
    'true_computation=%once, false_computation=%often', 'branch_computations={%often, %once}'])
def test_of_a_choice_the_branch_that_sends_least_counts_or_most(branches):
  hlo = CHOICE.replace('BRANCHES', branches)
  least, most = (program_costs.collectives(hlo, branch=branch) for branch in (min, max))
  assert least == {'all-reduce': (1, 56.0)} == program_costs.collectives(hlo)  # 2 * 7/8 * 32 bytes
  assert most == {'all-reduce': (1, 56.0), 'all-gather': (1, 224.0)}


def test_collectives_by_hand():
  """The loop runs for i = 0, 2, 4, 6; a gather that goes on beside an inner loop is one, and an
  all-reduce of which each device keeps its slice is a reduce-scatter."""
  assert program_costs.collectives(HLO) == {
      'all-gather': (4, 4 * 7 / 8 * 64 * 16 * 4),
      'collective-permute': (4, 4 * 8 * 16 * 4),
      'reduce-scatter': (5, 1 / 2 * (2 * 4 * 16) * 2 + 4 * 7 / 8 * 8 * 16 * 4),
      'all-reduce': (1, 2 * 3 / 4 * 8 * 16 * 4),
  }


def test_a_loop_of_unknown_length_runs_as_often_as_told():
  unknown = HLO.replace('constant(7)', 'parameter(1)')
  assert program_costs.collectives(unknown, unknown_trips=4) == program_costs.collectives(HLO)
  loop = lambda n, x, w: jax.lax.fori_loop(0, n, lambda i, x: x @ w, x)
  jaxpr = jax.make_jaxpr(loop)(7, jnp.zeros((2, 4)), jnp.zeros((4, 4)))
  assert program_costs.flops(jaxpr, unknown_trips=3) == 3 * 64


@pytest.mark.parametrize('old, new', [
    ('direction=LT', 'direction=NE'), ('add(%i, %two)', 'multiply(%i, %two)'),
    ('constant(7)', 'parameter(1)')])
def test_a_loop_of_unknown_length_is_named(old, new):
  with pytest.raises(ValueError, match='loop loop: how often it runs is not known'):
    program_costs.collectives(HLO.replace(old, new))


def test_what_the_sharding_needs_by_hand():
  """A matrix of 64 elements over 4 chips, 2 copies; one that is whole everywhere; a table."""
  matrix, whole, table = ((64, 4, False), (6, 1, False), (32, 4, True))
  needs = lambda *params, **more: program_costs.needed_bytes(
      [program_costs.Sharded(*each) for each in params], batch_shards=8, itemsize=2, **more)
  assert needs(matrix) == {
      'all-gather': 2 * 3 / 4 * 128, 'reduce-scatter': 3 / 4 * 128, 'all-reduce': 2 / 2 * 128 / 4}
  assert needs(whole) == {'all-gather': 0, 'reduce-scatter': 0, 'all-reduce': 2 * 7 / 8 * 12}
  assert needs(table) == {'all-gather': 0, 'reduce-scatter': 0, 'all-reduce': 2 / 2 * 32 / 4 * 4}
  parts = needs(matrix, microbatches=3)
  assert parts == {'all-gather': 3 * 192, 'reduce-scatter': 3 * 96, 'all-reduce': 32}
  around = program_costs.needed_for_activations(
      10, num_layers=2, model=4, itemsize=2, recomputes=True)
  assert around == 5 * 2 * (2 * 3 / 4 * 20)


ON_EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from musiclm_jax import partitioning, program_costs

mesh = partitioning.make_mesh((1, 8, 1))
split = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))
whole = NamedSharding(mesh, P())

part = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P('fsdp'), P()), out_specs=P('fsdp'))
with jax.set_mesh(mesh):
  jaxpr = jax.make_jaxpr(part)(jnp.zeros((16, 32)), jnp.zeros((32, 32)))
assert program_costs.flops(jaxpr) == 2 * 16 * 32 * 32  # of all devices

def f(x, layers):
  def layer(x, w):
    return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None
  return jnp.sum(jax.lax.scan(layer, x, layers)[0])

shapes = split((16, 32), 'fsdp'), split((6, 32, 32), None, 'fsdp')
found = program_costs.collectives(jax.jit(f).lower(*shapes).compile().as_text())
gathered = found['all-gather']
assert gathered.count in (1, 6), found  # of all layers at once or of each
assert gathered.sent == 7 / 8 * 6 * 32 * 32 * 4, found
assert found['all-reduce'].count == 1 and found['all-reduce'].sent == 2 * 7 / 8 * 4, found
"""


def test_collectives_of_a_program_of_eight_devices():
  environment = dict(
      os.environ, XLA_FLAGS='--xla_force_host_platform_device_count=8', JAX_PLATFORMS='cpu')
  done = subprocess.run([sys.executable, '-c', textwrap.dedent(ON_EIGHT_DEVICES)],
                        env=environment, capture_output=True, text=True, timeout=300)
  assert not done.returncode, done.stderr[-1500:]
