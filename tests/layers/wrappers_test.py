"""Directions, adapters to Flax and RL, flags, packing."""

import functools
import time

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import testing

# Two sequences and the end of one that began before, with padding: `cc.dd.eee`.
_RESET = np.array([0, 0, 1, 1, 0, 0, 1, 0, 0], bool)  # One at absent step 2.
_MASK = np.array([1, 1, 0, 1, 1, 0, 1, 1, 1], bool)
_PIECES = ([0, 1], [3, 4], [6, 7, 8])


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


class ReverseTest(parameterized.TestCase):

  def test_is_the_layer_on_reversed_inputs(self):
    layer, x = lstm(), draw(2, 6, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(2))
    want, y = run(layer, x[:, ::-1], carry)
    testing.assert_close(
        run(layers.Reverse(layer), x, carry), (want, y[:, ::-1])
    )

  def test_sequences_and_padding_in_one_row(self):
    layer, x = lstm(), draw(1, 9, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    x[:, ~_MASK] = np.nan
    got, y = run(
        layers.Reverse(layer), x, carry, reset=_RESET[None], mask=_MASK[None]
    )
    want = np.zeros((1, 9, 5), np.float32)
    # The given carry enters at the row's last token; what comes out has seen
    # the row's first sequence, which starts afresh on its last token.
    for piece, start in zip(_PIECES, (None, None, carry)):
      last, out = run(layers.Reverse(layer), x[:, piece], start)
      want[:, piece] = out
      if piece == _PIECES[0]:
        testing.assert_close(got, last)
    testing.assert_close(y, want)

  def test_a_start_in_the_padding_at_the_end_is_absent(self):
    layer, x = lstm(), draw(1, 6, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    mask = np.arange(6)[None] < 4
    got, y = run(layers.Reverse(layer), x, carry, reset=~mask, mask=mask)
    want = run(layers.Reverse(layer), x[:, :4], carry)
    testing.assert_close((got, y[:, :4]), want)

  def test_every_token_a_sequence(self):
    layer, x = lstm(), draw(2, 5, 4)
    _, y = run(layers.Reverse(layer), x, reset=np.ones((2, 5), bool))
    _, want = run(layer, x.reshape(10, 1, 4))
    testing.assert_close(y, want.reshape(2, 5, 5))

  def test_twice_is_once(self):
    layer, x = lstm(), draw(1, 9, 4)
    flags = dict(reset=_RESET[None], mask=_MASK[None])
    twice = layers.Reverse(layers.Reverse(layer))
    testing.assert_close(run(twice, x, **flags), run(layer, x, **flags))

  def test_has_no_step(self):
    layer = layers.Reverse(lstm())
    with self.assertRaisesRegex(ValueError, 'last token'):
      layer.step(layer.initialize_carry(2), draw(2, 4))


class BidirectionalTest(parameterized.TestCase):

  @parameterized.parameters('concat', 'sum')
  def test_is_both_layers(self, merge):
    forward, backward = lstm(), layers.GRU(4, 5, rngs=nnx.Rngs(1))
    layer = layers.Bidirectional(forward, backward, merge=merge)
    x = draw(2, 6, 4)
    carry, y = run(layer, x)
    want_f, f = run(forward, x)
    want_b, b = run(backward, x[:, ::-1])
    b = b[:, ::-1]
    want = jnp.concatenate([f, b], -1) if merge == 'concat' else f + b
    testing.assert_close((tuple(carry), y), ((want_f, want_b), want))
    self.assertEqual(layer.out_features, y.shape[-1])

  def test_each_carry_enters_at_its_end(self):
    layer = layers.Bidirectional(lstm(), lstm())
    x = draw(1, 9, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    flags = dict(reset=_RESET[None], mask=_MASK[None])
    y_of = lambda forward, backward: run(
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

  def test_refuses_layers_that_do_not_fit(self):
    def pair(*sizes, merge='concat'):
      return nnx.eval_shape(lambda: layers.Bidirectional(
          *[lstm(*size) for size in sizes], merge=merge
      ))

    self.assertEqual(pair((4, 5), (4, 6)).out_features, 11)
    with self.assertRaisesRegex(ValueError, 'in_features, got 4 and 3'):
      pair((4, 5), (3, 5))
    with self.assertRaisesRegex(ValueError, 'out_features, got 5 and 6'):
      pair((4, 5), (4, 6), merge='sum')
    with self.assertRaisesRegex(ValueError, r"\['concat', 'sum'\], got 'mean'"):
      pair((4, 5), (4, 5), merge='mean')


class AsRNNCellTest(parameterized.TestCase):

  @parameterized.parameters('lstm', 'lru')
  def test_flax_gives_the_numbers_of_the_layer(self, name):
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

  def test_refuses_what_it_cannot_do(self):
    with self.assertRaisesRegex(ValueError, 'causal, Reverse has no `step`'):
      layers.as_rnn_cell(layers.Reverse(lstm()))
    with self.assertRaisesRegex(ValueError, 'carry_init'):
      layers.as_rnn_cell(lstm()).initialize_carry(
          (2, 4), carry_init=nnx.initializers.ones
      )


class TimeMajorTest(parameterized.TestCase):

  @parameterized.parameters(bool, np.float32)
  def test_is_the_layer_with_axes_swapped(self, dtype):
    layer, x = lstm(), draw(9, 1, 4)
    carry = jax.tree.map(lambda u: u + 0.5, layer.initialize_carry(1))
    resets = _RESET[:, None].astype(dtype)
    got, y = jax.jit(layers.time_major(layer))(carry, (x, resets))
    want_carry, want = run(
        layer, x.swapaxes(0, 1), carry, reset=_RESET[None]
    )
    testing.assert_close((got, y), (want_carry, want.swapaxes(0, 1)))


class FlagsTest(parameterized.TestCase):

  def test_reset_from_segment_ids(self):
    ids = np.array([[1, 1, 2, 3, 3], [7, 7, 7, 7, 0]])
    change = [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    for first, starts in (
        (True, [1, 1]), (False, [0, 0]), (ids[:, 0] != [1, 2], [0, 1])
    ):
      got = layers.reset_from_segment_ids(ids, first=first)
      want = np.array(change, bool)
      want[:, 0] = starts
      np.testing.assert_array_equal(got, want)
    self.assertEqual(layers.reset_from_segment_ids(ids[:, :0]).shape, (2, 0))
    with self.assertRaisesRegex(ValueError, r'float.*\(2, 5\)'):
      layers.reset_from_segment_ids(np.float64(ids))

  @parameterized.parameters(bool, np.float32)
  def test_reset_from_done(self, dtype):
    done = np.array([[0, 1, 0, 1], [0, 0, 0, 0]]).astype(dtype)
    np.testing.assert_array_equal(
        layers.reset_from_done(done), [[0, 0, 1, 0], [0, 0, 0, 0]]
    )
    # Window by window as in one go.
    halves = [
        layers.reset_from_done(done[:, :2]),
        layers.reset_from_done(done[:, 2:], done[:, 1]),
    ]
    np.testing.assert_array_equal(
        np.concatenate(halves, 1), layers.reset_from_done(done)
    )
    with self.assertRaisesRegex(ValueError, r'\(2, 4\) and \(3,\)'):
      layers.reset_from_done(done, np.zeros(3))

  def test_mask_from_lengths(self):
    got = jax.jit(layers.mask_from_lengths, static_argnums=1)(
        np.array([0, 2, 5]), 3
    )
    np.testing.assert_array_equal(got, [[0, 0, 0], [1, 1, 0], [1, 1, 1]])
    self.assertEqual(got.dtype, bool)
    with self.assertRaisesRegex(ValueError, 'lengths'):
      layers.mask_from_lengths(np.array([1.5]), 3)


class PackTest(parameterized.TestCase):

  def test_first_fit(self):
    sequences = [np.full(n, i + 1) for i, n in enumerate([3, 4, 2, 1, 5])]
    batch = layers.pack(sequences, 5)
    np.testing.assert_array_equal(
        batch['inputs'],
        [[1, 1, 1, 3, 3], [2, 2, 2, 2, 4], [5, 5, 5, 5, 5]],
    )
    np.testing.assert_array_equal(
        batch['reset'], [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    )
    self.assertTrue(batch['mask'].all())

  def test_many_sequences_go_where_the_first_room_is(self):
    random = np.random.default_rng(0)
    lengths = random.integers(1, 101, 20_000)
    start = time.process_time()
    batch = layers.pack([np.full(n, n) for n in lengths], 100)
    self.assertLess(time.process_time() - start, 5)  # It was minutes.
    np.testing.assert_array_equal(batch['mask'].sum(), lengths.sum())
    some, rows = lengths[:300], []
    for n in some.tolist():
      row = next((row for row in rows if sum(row) + n <= 100), None)
      if row is None:
        rows.append(row := [])
      row.append(n)
    got = layers.pack([np.full(n, n) for n in some], 100)
    np.testing.assert_array_equal(
        got['inputs'],
        [np.pad(np.repeat(row, row), (0, 100 - sum(row))) for row in rows],
    )

  def test_a_layer_sees_sequences_alone(self):
    sequences = [draw(n, 4) + n for n in (3, 2, 4, 1)]
    batch = layers.pack(sequences, 6)
    self.assertEqual(batch['inputs'].shape, (2, 6, 4))
    self.assertEqual(batch['inputs'].dtype, np.float32)
    layer = layers.Bidirectional(lstm(), lstm())
    _, y = run(
        layer, batch['inputs'], reset=batch['reset'], mask=batch['mask']
    )
    alone = [np.asarray(run(layer, s[None])[1][0]) for s in sequences]
    # Rows: 3 + 2 + 1 and 4.
    want = np.concatenate([alone[0], alone[1], alone[3]])
    testing.assert_close(y[0], want)
    testing.assert_close(y[1, :4], alone[2])

  @parameterized.named_parameters(
      ('none', [], 'must not be empty'),
      ('too_long', [np.arange(5)], r'sequences\[0\].* 1 to 4 tokens, got 5'),
      ('empty', [np.arange(2), np.arange(0)], r'sequences\[1\].*got 0'),
      ('scalar', [np.array(1)], r'sequences\[0\]'),
      ('mixed', [np.arange(2), np.ones(2)], r'sequences\[1\].*int64.*float64'),
  )
  def test_refuses(self, sequences, message):
    with self.assertRaisesRegex(ValueError, message):
      layers.pack(sequences, 4)
