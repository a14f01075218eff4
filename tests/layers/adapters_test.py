"""Layers as cells of Flax, and time first."""


from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing
from tests.layers import modules

# Two sequences and the end of one that began before, with padding: `cc.dd.eee`.
_RESET = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0], bool)  # One at absent step 2.


class AsRNNCellTest(parameterized.TestCase):

  @parameterized.parameters('lstm', 'lru')
  def test_nnx_rnn_equals_the_layer(self, name):
    layer = testing.LAYERS[name](nnx.Rngs(0))
    rnn = nnx.RNN(layers.as_rnn_cell(layer), return_carry=True)
    x, lengths = modules.draw(3, 7, 6), np.array([7, 2, 4])
    carry, _ = modules.run(layer, modules.draw(3, 7, 6)[:, ::-1])
    testing.assert_close(modules.run(rnn, x), modules.run(layer, x))
    testing.assert_close(
        modules.run(rnn, x, initial_carry=carry), modules.run(layer, x, carry)
    )
    mask = layers.mask_from_lengths(lengths, 7)
    got, y = modules.run(rnn, x, initial_carry=carry, seq_lengths=lengths)
    want = modules.run(layer, x, carry, mask=mask)
    testing.assert_close((got, jnp.where(mask[..., None], y, 0)), want)
    testing.assert_close(
        modules.run(rnn, x, reverse=True, keep_order=True),
        modules.run(layers.Reverse(layer), x),
    )

  def test_any_number_of_batch_axes(self):
    layer = modules.lstm()
    rnn = nnx.RNN(layers.as_rnn_cell(layer), return_carry=True)
    x = modules.draw(2, 3, 7, 4)
    carry, y = modules.run(rnn, x)
    want_carry, want = modules.run(layer, x.reshape(6, 7, 4))
    back = lambda u: u.reshape((2, 3) + u.shape[1:])
    want_carry = jax.tree.map(back, want_carry)
    testing.assert_close((carry, y), (want_carry, back(want)))
    carry, y = modules.run(rnn, x[0, 0])
    testing.assert_close(y, want[0])
    self.assertEqual(carry.c.shape, (5,))

  def test_dtype_is_that_of_the_inputs(self):
    with jax.enable_x64(True):
      layer, x = modules.lstm(), np.float64(modules.draw(2, 3, 4))
      output = lambda *dtype: jax.eval_shape(
          lambda x: modules.run(
              nnx.RNN(layers.as_rnn_cell(layer, *dtype)), x
          ), x
      )
      self.assertEqual(output(jnp.float64).dtype, np.float64)
      with self.assertRaisesRegex(ValueError, 'must be float64'):
        output()

  def test_parameters_are_those_of_the_layer(self):
    layer = modules.lstm()
    cell = layers.as_rnn_cell(layer)
    got, want = nnx.state(cell), nnx.state(layer)
    self.assertEqual(list(got), ['layer'])
    testing.assert_close(got['layer'], want)

  def test_invalid_arguments_raise(self):
    with self.assertRaisesRegex(ValueError, 'causal, Reverse has no `step`'):
      layers.as_rnn_cell(layers.Reverse(modules.lstm()))
    with self.assertRaisesRegex(ValueError, 'carry_init'):
      layers.as_rnn_cell(modules.lstm()).initialize_carry(
          (2, 4), carry_init=nnx.initializers.ones
      )


class TimeMajorTest(parameterized.TestCase):

  @parameterized.parameters(bool, np.float32)
  def test_equals_the_layer_with_axes_swapped(self, dtype):
    layer, x = modules.lstm(), modules.draw(9, 1, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    resets = _RESET[:, None].astype(dtype)
    got, y = jax.jit(layers.time_major(layer))(carry, (x, resets))
    want_carry, want = modules.run(
        layer, x.swapaxes(0, 1), carry, reset=_RESET[None]
    )
    testing.assert_close((got, y), (want_carry, want.swapaxes(0, 1)))
