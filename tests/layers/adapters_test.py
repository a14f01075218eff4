"""Layers as cells of Flax, and time first."""

import functools

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing

# Two sequences and the end of one that began before, with padding: `cc.dd.eee`.
_RESET = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0], bool)  # One at absent step 2.


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _call(graph, options, state, args, flags):
  return nnx.merge(graph, state)(*args, **dict(options), **flags)


def run(module, *args, **keywords):
  """Calls a module as one compiled program: eager ones are many more."""
  graph, state = nnx.split(module)
  static = {k: v for k, v in keywords.items() if isinstance(v, bool)}
  arrays = {k: v for k, v in keywords.items() if k not in static}
  return _call(graph, tuple(static.items()), state, args, arrays)


def lstm(features=4, hidden=5):
  return layers.LSTM(features, hidden, rngs=nnx.Rngs(0))


class AsRNNCellTest(parameterized.TestCase):

  @parameterized.parameters('lstm', 'lru')
  def test_nnx_rnn_equals_the_layer(self, name):
    layer = testing.LAYERS[name](nnx.Rngs(0))
    rnn = nnx.RNN(layers.as_rnn_cell(layer), return_carry=True)
    x, lengths = draw(3, 7, 6), np.array([7, 2, 4])
    carry, _ = run(layer, draw(3, 7, 6)[:, ::-1])
    testing.assert_close(run(rnn, x), run(layer, x))
    testing.assert_close(
        run(rnn, x, initial_carry=carry), run(layer, x, carry)
    )
    mask = layers.mask_from_lengths(lengths, 7)
    got, y = run(rnn, x, initial_carry=carry, seq_lengths=lengths)
    want = run(layer, x, carry, mask=mask)
    testing.assert_close((got, jnp.where(mask[..., None], y, 0)), want)
    testing.assert_close(
        run(rnn, x, reverse=True, keep_order=True),
        run(layers.Reverse(layer), x),
    )

  def test_any_number_of_batch_axes(self):
    layer = lstm()
    rnn = nnx.RNN(layers.as_rnn_cell(layer), return_carry=True)
    x = draw(2, 3, 7, 4)
    carry, y = run(rnn, x)
    want_carry, want = run(layer, x.reshape(6, 7, 4))
    back = lambda u: u.reshape((2, 3) + u.shape[1:])
    want_carry = jax.tree.map(back, want_carry)
    testing.assert_close((carry, y), (want_carry, back(want)))
    carry, y = run(rnn, x[0, 0])
    testing.assert_close(y, want[0])
    self.assertEqual(carry.c.shape, (5,))

  def test_dtype_is_that_of_the_inputs(self):
    with jax.enable_x64(True):
      layer, x = lstm(), np.float64(draw(2, 3, 4))
      output = lambda *dtype: jax.eval_shape(
          lambda x: run(nnx.RNN(layers.as_rnn_cell(layer, *dtype)), x), x
      )
      self.assertEqual(output(jnp.float64).dtype, np.float64)
      with self.assertRaisesRegex(ValueError, 'must be float64'):
        output()

  def test_parameters_are_those_of_the_layer(self):
    layer = lstm()
    cell = layers.as_rnn_cell(layer)
    got, want = nnx.state(cell), nnx.state(layer)
    self.assertEqual(list(got), ['layer'])
    testing.assert_close(got['layer'], want)

  def test_invalid_arguments_raise(self):
    with self.assertRaisesRegex(ValueError, 'causal, Reverse has no `step`'):
      layers.as_rnn_cell(layers.Reverse(lstm()))
    with self.assertRaisesRegex(ValueError, 'carry_init'):
      layers.as_rnn_cell(lstm()).initialize_carry(
          (2, 4), carry_init=nnx.initializers.ones
      )


class TimeMajorTest(parameterized.TestCase):

  @parameterized.parameters(bool, np.float32)
  def test_equals_the_layer_with_axes_swapped(self, dtype):
    layer, x = lstm(), draw(9, 1, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    resets = _RESET[:, None].astype(dtype)
    got, y = jax.jit(layers.time_major(layer))(carry, (x, resets))
    want_carry, want = run(
        layer, x.swapaxes(0, 1), carry, reset=_RESET[None]
    )
    testing.assert_close((got, y), (want_carry, want.swapaxes(0, 1)))
