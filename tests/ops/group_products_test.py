"""Products of groups of rows, against a loop over rows in float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo.ops import group_products as grouped
from tests import tolerance

G, D, F = 4, 3, 5


def oracle(x, w, sizes):
  groups = np.repeat(np.arange(len(sizes)), sizes)
  y = np.zeros((len(x), w.shape[2]))
  for row, group in enumerate(groups):
    y[row] = np.asarray(x[row], float) @ np.asarray(w[group], float)
  return y


def operands(rows, dtype=np.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  return draw(rows, D), draw(G, D, F), draw(rows, F)


class GroupedProductTest(parameterized.TestCase):

  @parameterized.parameters(
      ([3, 0, 9, 1], 20), ([0, 0, 0, 0], 4), ([300, 2, 40, 0], 342),
  )
  def test_values_and_gradients(self, sizes, rows):
    x, w, g = operands(rows)
    forms = dict(
        ours=lambda x, w: grouped.grouped_product(x, w, jnp.array(sizes)),
        ragged=lambda x, w: grouped._ragged_product(
            False, x, w, jnp.array(sizes)
        ),
    )
    for form in forms.values():
      y, back = jax.vjp(jax.jit(form), x, w)
      tolerance.assert_close(y, oracle(x, w, sizes))
      dx, dw = back(g)
      tolerance.assert_close(dx, oracle(g, w.swapaxes(1, 2), sizes))
      ends = np.cumsum(sizes)
      want = [
          np.asarray(x[end - n : end], float).T @ np.asarray(g[end - n : end])
          for end, n in zip(ends, sizes)
      ]
      tolerance.assert_close(dw, np.stack(want))
    tolerance.assert_close(
        grouped._ragged_outer(x, g, jnp.array(sizes)), np.stack(want)
    )

  def test_rows_of_other_groups_may_be_anything(self):
    x, w, g = operands(20)
    sizes = jnp.array([3, 0, 9, 1])
    broken = x.at[:3].set(jnp.nan).at[13:].set(jnp.nan)

    def run(x):
      y, back = jax.vjp(
          lambda x, w: grouped.grouped_product(x, w, sizes), x, w
      )
      return y, *back(g)

    for got, want in zip(run(broken)[:2], run(x)[:2]):
      np.testing.assert_array_equal(got[3:], want[3:])
    np.testing.assert_array_equal(run(broken)[2][1:], run(x)[2][1:])

  def test_bfloat16_vmap_and_second_derivatives(self):
    x, w, _ = operands(20)
    sizes = jnp.array([[3, 0, 9, 1], [5, 5, 5, 5]])
    half = x.astype(jnp.bfloat16)
    y = jax.vmap(lambda s: grouped.grouped_product(half, w, s))(sizes)
    self.assertEqual(y.dtype, jnp.bfloat16)
    tolerance.assert_close(
        y, np.stack([oracle(half, w.astype(y.dtype), s) for s in sizes])
    )

    def penalty(product):
      loss = lambda x, w: (product(x, w) ** 3).sum()
      return jax.grad(
          lambda x, w: sum((u**2).sum() for u in jax.grad(loss, (0, 1))(x, w)),
          (0, 1),
      )(x, w)

    groups = np.repeat(np.arange(G), [5, 5, 5, 5])
    tolerance.assert_close(
        penalty(lambda x, w: grouped.grouped_product(x, w, sizes[1])),
        penalty(lambda x, w: jnp.einsum('nd,ndf->nf', x, w[groups])),
    )

  @parameterized.parameters(
      (lambda x, w, s: (x, w[:, :2], s), r'`w` must be \[G, D, F\]'),
      (lambda x, w, s: (x, w, s[:2]), r'`sizes` must be \[G\] = \(4,\)'),
      (lambda x, w, s: (x, w, s / 1), '`sizes` must be integers'),
      (lambda x, w, s: (x[0], w, s), r'`x` must be \[N, D\]'),
  )
  def test_errors(self, change, message):
    x, w, _ = operands(4)
    with self.assertRaisesRegex(ValueError, message):
      grouped.grouped_product(*change(x, w, jnp.array([1, 1, 1, 1])))


if __name__ == '__main__':
  absltest.main()
