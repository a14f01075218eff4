"""Tensor trains against the dense matrices they stand for; TT-LSTM, TT-GRU."""

import math

from absl.testing import parameterized
from flax import nnx
import jax
import numpy as np
from rnnzoo import layers
from rnnzoo.layers import tensor_train
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def dense(cores):
  """The matrix of a tensor train, element by element of its definition."""
  matrix = cores[0][0]  # [m, n, r]
  for core in cores[1:]:
    rows, columns = matrix.shape[0], matrix.shape[1]
    matrix = np.einsum('ijr,rkls->ikjls', matrix, core).reshape(
        rows * core.shape[1], columns * core.shape[2], core.shape[3]
    )
  return matrix[..., 0]


def gates_of(p, name, gates, form):
  """The dense matrix of each gate, `[D, G, H]`."""
  count = sum(key.startswith(f'{name}/cores/') for key in p)
  cores = [p[f'{name}/cores/{k}'] for k in range(count)]
  if form == 'separate':
    return np.stack(
        [dense([core[g] for core in cores]) for g in range(gates)], axis=1
    )
  matrix = dense(cores)
  if form == 'last':
    return matrix.reshape(len(matrix), -1, gates).swapaxes(1, 2)
  return matrix.reshape(len(matrix), gates, -1)


def tt_lstm(p, x, carry, form='joint'):
  """Onu et al. (2020), arXiv 2010.04196, with W and U dense."""
  w, u = (gates_of(p, name, 4, form) for name in ('input', 'hidden'))
  (c, h), b, ys = carry, p['input/bias'], []
  for x_t in x:
    i, f, g, o = (x_t @ w[:, k] + b[k] + h @ u[:, k] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    ys.append(h)
  return (c, h), ys


def tt_gru(p, x, h, form='joint'):
  """Likewise."""
  w, u = (gates_of(p, name, 3, form) for name in ('input', 'hidden'))
  b, c, ys = p['input/bias'], p['hidden/bias'], []
  for x_t in x:
    r, z = (
        sigmoid(x_t @ w[:, k] + b[k] + h @ u[:, k] + c[k]) for k in (0, 1)
    )
    n = np.tanh(x_t @ w[:, 2] + b[2] + r * (h @ u[:, 2] + c[2]))
    h = (1 - z) * n + z * h
    ys.append(h)
  return h, ys


def with_form(equations, form):
  return lambda p, x, carry: equations(p, x, carry, form)


class TranscriptionTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('lstm', tt_lstm, layers.TTLSTM, dict(num_cores=3)),
      ('lstm_last', tt_lstm, layers.TTLSTM, dict(form='last')),
      ('gru', tt_gru, layers.TTGRU, {}),
      ('gru_first', tt_gru, layers.TTGRU, dict(form='first', rank=3)),
      ('gru_separate', tt_gru, layers.TTGRU, dict(form='separate')),
  )
  def test_equals_a_loop_in_numpy(self, equations, layer, options):
    transcription.check(
        with_form(equations, options.get('form', 'joint')),
        lambda rngs: layer(6, 4, **options, rngs=rngs),
    )


class MatmulTest(parameterized.TestCase):

  @parameterized.parameters(
      ((6,), (4,), 1), ((2, 3), (5, 2), 4), ((3, 1, 2), (2, 5, 1), 2)
  )
  def test_product_equals_that_of_the_dense_matrix(self, rows, columns, rank):
    random = np.random.default_rng(0)
    ranks = [1] + [rank] * (len(rows) - 1) + [1]
    cores = [
        random.standard_normal(shape)
        for shape in zip(ranks, rows, columns, ranks[1:])
    ]
    # By its definition: an element is a product of small matrices.
    matrix = np.zeros((math.prod(rows), math.prod(columns)))
    for row in np.ndindex(rows):
      for column in np.ndindex(columns):
        product = np.eye(1)
        for core, i, j in zip(cores, row, column):
          product = product @ core[:, i, j]
        at = np.ravel_multi_index(row, rows)
        matrix[at, np.ravel_multi_index(column, columns)] = product[0, 0]
    np.testing.assert_allclose(dense(cores), matrix, rtol=1e-12)
    x = random.standard_normal((2, 3, math.prod(rows)))
    with jax.enable_x64(True):
      y = jax.jit(tensor_train.matmul)(x, cores)
    np.testing.assert_allclose(y, x @ matrix, rtol=1e-12)

  def test_the_dense_matrix_is_never_formed(self):
    # 1024 x 4096 numbers are 16 MiB; cores and what is between them, 0.3 MiB.
    layer = layers.TTLSTM(1024, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    step = jax.jit(lambda s, carry, x: nnx.merge(graph, s).step(carry, x))
    carry = jax.eval_shape(lambda: layer.initialize_carry(1))
    x = jax.ShapeDtypeStruct((1, 1024), np.float32)
    memory = step.lower(state, carry, x).compile().memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 2**20)
    self.assertLess(memory.argument_size_in_bytes, 2**20)

  @parameterized.parameters(
      (256, 2, (16, 16)), (1024, 3, (8, 8, 16)), (96, 3, (4, 4, 6)),
      (7, 2, (1, 7)), (12, 4, (1, 2, 2, 3)), (5, 1, (5,)), (1, 2, (1, 1)),
  )
  def test_nearly_equal_factors(self, size, count, want):
    self.assertEqual(tensor_train.nearly_equal_factors(size, count), want)


class ParametersTest(parameterized.TestCase):

  @parameterized.parameters(
      # Per map, r0 m1 n1 r1 + r1 m2 n2 r2 with the factors of D and of 4 H.
      ('joint', 2 * (16 * 32 * 2 + 2 * 16 * 32)),
      # A core of 1 x 4 more, and columns of H.
      ('first', 2 * (4 * 2 + 2 * 16 * 16 * 2 + 2 * 16 * 16)),
      ('last', 2 * (16 * 16 * 2 + 2 * 16 * 16 * 2 + 2 * 4)),
      ('separate', 2 * 4 * (16 * 16 * 2 + 2 * 16 * 16)),
  )
  def test_number_of_parameters(self, form, want):
    layer = nnx.eval_shape(
        lambda: layers.TTLSTM(256, form=form, rngs=nnx.Rngs(0))
    )
    sizes = [u.size for u in jax.tree.leaves(nnx.state(layer, nnx.Param))]
    self.assertEqual(sum(sizes), want + 4 * 256)

  @parameterized.parameters(*tensor_train.FORMS)
  def test_initial_matrix_has_the_glorot_variance(self, form):
    # Few large cores: one matrix alone says little about its distribution.
    squares = []
    for seed in range(12):
      maps = tensor_train.TTGates(
          4, (8, 16), (8, 8), 3, form, rngs=nnx.Rngs(seed)
      )
      cores = {
          f'w/cores/{k}': np.asarray(core[...])
          for k, core in enumerate(maps.cores)
      }
      squares.append(np.square(gates_of(cores, 'w', 4, form)).mean())
      if form == 'joint':
        self.assertEqual(maps.hidden_features, 16)
    columns = 256 if form in ('first', 'last') else 64
    self.assertAlmostEqual(
        np.mean(squares) / (2 / (128 + columns)), 1, delta=0.3
    )

  def test_initial_biases(self):
    layer = layers.TTGRU(6, 4, rngs=nnx.Rngs(0))
    for part in (layer.input, layer.hidden):
      np.testing.assert_array_equal(
          part.bias[...], np.full((3, 4), 1e-3, np.float32)
      )
    self.assertIsNone(layers.TTLSTM(6, 4, rngs=nnx.Rngs(0)).hidden.bias)

  def test_given_factors_are_used(self):
    layer = layers.TTGRU(
        12, 8, in_factors=[6, 2], hidden_factors=(8, 1), gate_factors=(3, 8),
        rank=5, rngs=nnx.Rngs(0),
    )
    shapes = lambda part: [core.shape for core in part.cores]
    self.assertEqual(shapes(layer.input), [(1, 6, 3, 5), (5, 2, 8, 1)])
    self.assertEqual(shapes(layer.hidden), [(1, 8, 3, 5), (5, 1, 8, 1)])

  @parameterized.parameters(
      (layers.TTLSTM, 'form', 'dense'),
      (layers.TTLSTM, 'num_cores', 0),
      (layers.TTGRU, 'rank', 0),
      (layers.TTLSTM, 'in_factors', (2, 2)),
      (layers.TTLSTM, 'hidden_factors', (2, 1, 2)),
      (layers.TTGRU, 'gate_factors', (-3, -4)),
  )
  def test_invalid_factors_raise(self, cls, name, value):
    with self.assertRaisesRegex(ValueError, f'`{name}` must be.*got'):
      cls(6, 4, **{name: value}, rngs=nnx.Rngs(0))
