"""Matrix-state recurrences, compiled for a TPU and an H200 that are not there.

Nothing in their programs is as large as all states, and no copy of the inputs
is made but the one that the compiler may want to lay them out.
"""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest
from rnnzoo import ops
from tests.aot import gpu_test
from tests.aot import tpu_test

pytestmark = pytest.mark.aot

B, T, H, K = 4, 2048, 8, 128

_WIDE = jax.ShapeDtypeStruct((B, T, H, K), jnp.float32)
_NARROW = jax.ShapeDtypeStruct((B, T, H), jnp.float32)


def gradient(run):
  loss = lambda *inputs: jnp.square(run(*inputs)[1]).sum()
  return lambda *inputs: jax.grad(loss, range(len(inputs)))(*inputs)


def gated_linear_attention(q, k, v, g):
  return ops.linear_attention(q, k, v, log_decay=g)


def gated_delta_rule(q, k, v, beta, g):
  return ops.delta_rule(q, k, v, beta, log_decay=g)


_CASES = dict(
    linear_attention=(gated_linear_attention, (_WIDE,) * 3 + (_NARROW,)),
    delta_rule=(gated_delta_rule, (_WIDE,) * 3 + (_NARROW,) * 2),
)


class ChunkwiseTest(parameterized.TestCase):

  def check(self, compiled, inputs):
    used = compiled.memory_analysis().temp_size_in_bytes
    self.assertLess(used, 3 * sum(u.size * 4 for u in inputs))

  @parameterized.named_parameters(*((n, *case) for n, case in _CASES.items()))
  def test_for_an_h200(self, run, inputs):
    devices, _ = gpu_test._compiler()
    mesh = jax.sharding.Mesh(devices[:1], ('x',))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = [
        jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=whole) for u in inputs
    ]
    self.check(jax.jit(gradient(run)).lower(*placed).compile(), inputs)

  def test_for_a_tpu(self):
    run, inputs = _CASES['linear_attention']
    self.check(
        tpu_test._compiled('v5e:2x2', gradient(run), inputs), inputs
    )


if __name__ == '__main__':
  absltest.main()
