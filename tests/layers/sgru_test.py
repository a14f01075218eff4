"""SGRU and TFC-SGRU: the equations of our reading, and what the paper says."""

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def mixed(p, x_t, read, kept):
  w, u, b = p['input/kernel'], p['hidden/kernel'], p['input/bias']
  z = sigmoid(x_t @ w[:, 0] + b[0] + read @ u[:, 0])
  n = np.tanh(x_t @ w[:, 1] + b[1] + read @ u[:, 1])
  return (1 - z) * kept + z * n


def sgru(p, x, h):
  """Wang et al. (2023), arXiv 2211.02561, as far as the abstract goes."""
  ys = []
  for x_t in x:
    h = mixed(p, x_t, h, h)
    ys.append(h)
  return h, ys


def tfc_sgru(p, x, carry):
  """Likewise."""
  ys = [carry.before, carry.h]
  for x_t in x:
    ys.append(mixed(p, x_t, ys[-1], ys[-2]))
  return layers.TFCSGRUCarry(ys[-1], ys[-2]), ys[2:]


class SGRUTest(parameterized.TestCase):

  @parameterized.parameters((sgru, layers.SGRU), (tfc_sgru, layers.TFCSGRU))
  def test_equals_a_loop_in_numpy(self, equations, layer):
    transcription.check(equations, lambda rngs: layer(4, 5, rngs=rngs))

  @parameterized.parameters(layers.SGRU, layers.TFCSGRU)
  def test_parameters_are_two_thirds_of_a_gru(self, cls):
    size = lambda layer: sum(
        u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))
    )
    make = lambda cls, **options: nnx.eval_shape(
        lambda: cls(6, 9, **options, rngs=nnx.Rngs(0))
    )
    gru = make(layers.GRU, reset_after=False)
    self.assertEqual(3 * size(make(cls)), 2 * size(gru))

  def test_tfc_sgru_keeps_the_state_of_two_steps_ago(self):
    # With gates closed: h_t = h_{t-2}, without any change.
    layer = layers.TFCSGRU(3, 4, rngs=nnx.Rngs(0))
    layer.input.bias[...] = layer.input.bias[...].at[0].set(-200.0)
    carry = layers.TFCSGRUCarry(jnp.full((1, 4), 0.3), jnp.full((1, 4), -0.7))
    _, y = layer(jnp.ones((1, 5, 3)), carry)
    np.testing.assert_array_equal(
        y[0, :, 0], np.float32([-0.7, 0.3, -0.7, 0.3, -0.7])
    )

  @parameterized.parameters(layers.SGRU, layers.TFCSGRU)
  def test_initial_values_are_those_of_a_gru(self, cls):
    layer = cls(3, 16, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.hidden.kernel[...])
    for gate in range(2):
      u = kernel[:, gate]
      np.testing.assert_allclose(u @ u.T, np.eye(16), atol=1e-5)
    self.assertFalse(np.any(layer.input.bias[...]))
