"""Products of tokens and parameters: which axes they are taken over."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo.layers import common


def summed_axes(x, kernel):
  """How many axes each product sums over in `product` and its gradients."""
  loss = lambda x, kernel: common.product(x, kernel).sum()
  jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, kernel).jaxpr
  return [
      len(eqn.params['dimension_numbers'][0][0])
      for eqn in jaxpr.eqns
      if eqn.primitive.name == 'dot_general'
  ]


class ProductTest(parameterized.TestCase):

  @parameterized.parameters((4, 3), (2, 5, 3), (2, 0, 3), (2, 4, 5, 3))
  def test_equals_an_einsum(self, *shape):
    random = np.random.default_rng(0)
    x = random.standard_normal(shape).astype(np.float32)
    kernel = random.standard_normal((3, 2, 4)).astype(np.float32)
    got = common.product(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(
        got, np.einsum('...d,dgh->...gh', x, kernel), rtol=1e-5, atol=1e-6
    )

  def test_sums_in_the_given_dtype(self):
    x, kernel = jnp.ones((2, 5, 3), jnp.bfloat16), jnp.ones((3, 4))
    self.assertEqual(common.product(x, kernel).dtype, jnp.bfloat16)
    self.assertEqual(
        common.product(x, kernel, jnp.float32).dtype, jnp.float32
    )

  @parameterized.named_parameters(
      ('project', lambda x, bias: common._affine(
          x, jnp.ones((8, 8)), bias, x.dtype
      )),
      ('scaled', common.scaled),
      ('blocks', lambda x, bias: common.block_diagonal(
          x, jnp.ones((2, 4, 4)), bias.reshape(2, 4)
      )),
  )
  def test_bfloat16_gradients_sum_all_tokens(self, function):
    x = jnp.ones((64, 256, 8), jnp.bfloat16)
    bias = jnp.full(8, 0.5)
    loss = lambda bias: function(x, bias).astype(jnp.float32).sum()
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(bias), 64 * 256)
    self.assertEqual(function(x, bias).dtype, jnp.bfloat16)

  def test_tokens_form_one_axis_on_one_device_only(self):
    x, kernel = jnp.ones((8, 8, 4)), jnp.ones((4, 4))
    self.assertEqual(max(summed_axes(x, kernel)), 1)
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    axes = dict(data=4, sequence=2)
    mesh = jax.make_mesh(
        tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes)
    )
    with jax.set_mesh(mesh):
      self.assertEqual(max(summed_axes(x, kernel)), 2)


if __name__ == '__main__':
  absltest.main()
