"""`Reverse` and `Bidirectional` against the layers they run."""


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
_MASK = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1], bool)
_PIECES = ([0, 1], [3, 4], [6, 7, 8])


class ReverseTest(parameterized.TestCase):

  def test_equals_the_layer_on_reversed_inputs(self):
    layer, x = modules.lstm(), modules.draw(2, 6, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(2))
    want, y = modules.run(layer, x[:, ::-1], carry)
    testing.assert_close(
        modules.run(layers.Reverse(layer), x, carry), (want, y[:, ::-1])
    )

  def test_sequences_and_padding_in_one_row(self):
    layer, x = modules.lstm(), modules.draw(1, 9, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    x[:, ~_MASK] = np.nan
    got, y = modules.run(
        layers.Reverse(layer), x, carry, reset=_RESET[None], mask=_MASK[None]
    )
    want = np.zeros((1, 9, 5), np.float32)
    # The given carry enters at the row's last token; what comes out has seen
    # the row's first sequence, which starts afresh on its last token.
    for piece, start in zip(_PIECES, (None, None, carry)):
      last, out = modules.run(layers.Reverse(layer), x[:, piece], start)
      want[:, piece] = out
      if piece == _PIECES[0]:
        testing.assert_close(got, last)
    testing.assert_close(y, want)

  def test_a_reset_in_the_padding_is_ignored(self):
    layer, x = modules.lstm(), modules.draw(1, 6, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    mask = np.arange(6)[None] < 4
    got, y = modules.run(
        layers.Reverse(layer), x, carry, reset=~mask, mask=mask
    )
    want = modules.run(layers.Reverse(layer), x[:, :4], carry)
    testing.assert_close((got, y[:, :4]), want)

  def test_sequences_of_one_token(self):
    layer, x = modules.lstm(), modules.draw(2, 5, 4)
    _, y = modules.run(layers.Reverse(layer), x, reset=np.ones((2, 5), bool))
    _, want = modules.run(layer, x.reshape(10, 1, 4))
    testing.assert_close(y, want.reshape(2, 5, 5))

  def test_reversing_twice_equals_the_layer(self):
    layer, x = modules.lstm(), modules.draw(1, 9, 4)
    flags = dict(reset=_RESET[None], mask=_MASK[None])
    twice = layers.Reverse(layers.Reverse(layer))
    testing.assert_close(
        modules.run(twice, x, **flags), modules.run(layer, x, **flags)
    )

  def test_has_no_step(self):
    layer = layers.Reverse(modules.lstm())
    with self.assertRaisesRegex(ValueError, 'last token'):
      layer.step(layer.initialize_carry(2), modules.draw(2, 4))


class BidirectionalTest(parameterized.TestCase):

  @parameterized.parameters('concat', 'sum')
  def test_equals_both_layers(self, merge):
    forward, backward = modules.lstm(), layers.GRU(4, 5, rngs=nnx.Rngs(1))
    layer = layers.Bidirectional(forward, backward, merge=merge)
    x = modules.draw(2, 6, 4)
    carry, y = modules.run(layer, x)
    want_f, f = modules.run(forward, x)
    want_b, b = modules.run(backward, x[:, ::-1])
    b = b[:, ::-1]
    want = jnp.concatenate([f, b], -1) if merge == 'concat' else f + b
    testing.assert_close((tuple(carry), y), ((want_f, want_b), want))
    self.assertEqual(layer.out_features, y.shape[-1])

  def test_each_carry_enters_at_its_end(self):
    layer = layers.Bidirectional(modules.lstm(), modules.lstm())
    x = modules.draw(1, 9, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    flags = dict(reset=_RESET[None], mask=_MASK[None])
    y_of = lambda forward, backward: modules.run(
        layer, x, layers.BidirectionalCarry(forward, backward), **flags
    )[1]
    zero = layer.initialize_carry(1)
    neither = y_of(*zero)
    first, last = _PIECES[0], _PIECES[2]
    moved = lambda y: np.flatnonzero(np.abs(y - neither).max((0, 2)))
    np.testing.assert_array_equal(
        moved(y_of(carry.forward, zero.backward)), first
    )
    np.testing.assert_array_equal(
        moved(y_of(zero.forward, carry.backward)), last
    )

  def test_layers_that_do_not_fit_raise(self):
    def pair(*sizes, merge='concat'):
      return nnx.eval_shape(lambda: layers.Bidirectional(
          *[modules.lstm(*size) for size in sizes], merge=merge
      ))

    self.assertEqual(pair((4, 5), (4, 6)).out_features, 11)
    with self.assertRaisesRegex(ValueError, 'in_features, got 4 and 3'):
      pair((4, 5), (3, 5))
    with self.assertRaisesRegex(ValueError, 'out_features, got 5 and 6'):
      pair((4, 5), (4, 6), merge='sum')
    with self.assertRaisesRegex(ValueError, r"\['concat', 'sum'\], got 'mean'"):
      pair((4, 5), (4, 5), merge='mean')
