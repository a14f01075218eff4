"""What `--deterministic` makes of a step on an H200 that is not there."""

import os
import subprocess
import sys

from absl.testing import parameterized
import pytest
from tests.aot import gpu_test

pytestmark = pytest.mark.aot

# XLA reads its flags once in a process.
_PROGRAM = """
import jax
import jax.numpy as jnp
from rnnzoo.training.processes import host
from tests.aot import gpu_test

host.make_deterministic()
devices, _ = gpu_test._compiler()
here = jax.sharding.SingleDeviceSharding(devices[0])
table, tokens = (
    jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    for shape, dtype in (((1000, 256), jnp.float32), ((16, 512), jnp.int32))
)
gradient = jax.grad(lambda table, tokens: jnp.sin(table[tokens]).sum())
print(jax.jit(gradient).trace(table, tokens).lower().compile().as_text())
"""


class DeterministicTest(parameterized.TestCase):

  def test_gradient_of_an_embedding(self):
    missing, _ = gpu_test._missing()
    if missing is not None:
      gpu_test._compiler()  # Skips, or fails where it must be there.
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM],
        capture_output=True, text=True, check=False, cwd=os.getcwd(),
        env=os.environ | dict(JAX_PLATFORMS='cpu', PYTHONPATH=os.getcwd()),
    )
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    self.assertIn('scatter(', done.stdout)
    # Rows that come twice are sorted and added up first: no race is left. By
    # default there is nothing but the scatter.
    self.assertIn('sort(', done.stdout)
    self.assertIn('unique_indices=true', done.stdout)
