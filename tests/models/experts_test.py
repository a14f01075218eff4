"""Mixtures of experts, against a loop over tokens in float64."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from tests import tolerance
from tests.models import small

D, F = 8, 12
ROUTERS = dict(
    mixtral=dict(num_experts=4),
    jamba=dict(num_experts=4, experts_per_token=3, renormalize=False),
    qwen3_next=dict(num_experts=5, shared_features=6, weigh_shared=True),
    nemotron=dict(
        num_experts=8, experts_per_token=3, scores='sigmoid', num_groups=4,
        top_groups=2, scale=2.5, shared_features=7, latent_features=5,
        kind='relu2',
    ),
    kimi=dict(
        num_experts=6, scores='sigmoid', renormalize=False, kind='geglu',
        shared_features=4,
    ),
)


def make(**options):
  layer = models.Experts(D, F, rngs=nnx.Rngs(0), **options)
  if layer.correction is not None:  # It starts at 0.
    layer.correction[...] = jnp.linspace(-0.3, 0.3, layer.num_experts)
  return layer


def oracle(layer, x):
  """What the experts make of one token `[D]`."""
  array = lambda u: np.asarray(u[...], np.float64)
  sigmoid = lambda u: 1 / (1 + np.exp(-u))
  act = dict(
      swiglu=lambda u: u * sigmoid(u), relu2=lambda u: np.maximum(u, 0) ** 2,
      geglu=lambda u: np.asarray(jax.nn.gelu(u), np.float64),
  )[layer.kind]

  def mlp(x, inner, gate, outer):
    y = x @ inner
    y = act(y) if gate is None else y * act(x @ gate)
    return y @ outer

  logits = x @ array(layer.router.kernel)
  if layer.scores == 'softmax':
    scores = ranks = np.exp(logits) / np.exp(logits).sum()
  else:
    scores = sigmoid(logits)
    ranks = scores + array(layer.correction)
    groups = np.split(np.arange(len(ranks)), layer.num_groups)
    merit = lambda group: np.sort(ranks[group])[-2:].sum()
    best = sorted(groups, key=merit)[-layer.top_groups:]
    ranks = np.where(np.isin(np.arange(len(ranks)), best), ranks, -np.inf)
  chosen = np.argsort(ranks)[-layer.experts_per_token:]
  weights = scores[chosen]
  if layer.renormalize:
    weights /= weights.sum()
  u = x @ array(layer.latent_in.kernel) if layer.has_latent else x
  y = 0
  for expert, weight in zip(chosen, weights):
    *gate, inner = array(layer.mlp_in)[expert].swapaxes(0, 1)
    y += weight * layer.scale * mlp(
        u, inner, gate[0] if gate else None, array(layer.mlp_out)[expert]
    )
  if layer.has_latent:
    y = y @ array(layer.latent_out.kernel)
  if layer.has_shared:
    gate = None if layer.kind == 'relu2' else array(layer.shared_gate.kernel)
    shared = mlp(
        x, array(layer.shared_in.kernel), gate, array(layer.shared_out.kernel)
    )
    if layer.shared_weight is not None:
      shared *= sigmoid(x @ array(layer.shared_weight.kernel))
    y += shared
  return y


def tokens(*shape):
  return jnp.asarray(np.random.default_rng(1).standard_normal((*shape, D)))


class ExpertsTest(parameterized.TestCase):

  @parameterized.parameters(*ROUTERS)
  def test_a_loop_over_tokens(self, name):
    layer = make(**ROUTERS[name])
    x = tokens(2, 9).astype(jnp.float32)
    want = np.stack([
        oracle(layer, row) for row in np.asarray(x, float).reshape(-1, D)
    ]).reshape(x.shape)
    y = layer(x)
    tolerance.assert_close(y, want, 'float32')
    tolerance.assert_close(layer(x[:, 3]), want[:, 3], 'float32')
    # Padding may hold anything, and gradients do not see it.
    mask = jnp.ones((2, 9), bool).at[0, 5:].set(False)
    graphdef, state = nnx.split(layer)

    def loss(state, x):
      y = nnx.merge(graphdef, state)(x, mask=mask)
      return (jnp.where(mask[..., None], y, 0) ** 2).sum()

    grads = [
        jax.grad(loss, (0, 1))(state, jnp.where(mask[..., None], x, pad))
        for pad in (0.0, jnp.nan)
    ]
    small.assert_trees_close(grads[1], grads[0], atol=0)
    self.assertTrue(all(
        jnp.abs(u).max() > 0 for path, u in jax.tree.leaves_with_path(grads[0])
        if 'correction' not in jax.tree_util.keystr(path)
    ))

  def test_gradients_are_those_of_a_dense_sum(self):
    layer = make(**ROUTERS['qwen3_next'])
    graphdef, state = nnx.split(layer)
    x = tokens(2, 9).astype(jnp.float32)

    def dense(state, x):
      layer = nnx.merge(graphdef, state)
      chosen, weights, _ = layer._route(layer.router(x))
      gate, up = jnp.einsum('btd,edgf->gbtef', x, layer.mlp_in[...])
      y = jnp.einsum(
          'btef,efd->bted', jax.nn.silu(gate) * up, layer.mlp_out[...]
      )
      places = jax.nn.one_hot(chosen, layer.num_experts)
      y = jnp.einsum('btk,btke,bted->btd', weights, places, y)
      return y + layer._shared(x)

    got, want = (
        jax.grad(lambda *a: (fn(*a) ** 2).sum(), (0, 1))(state, x)
        for fn in (lambda state, x: nnx.merge(graphdef, state)(x), dense)
    )
    small.assert_trees_close(got, want, atol=1e-5)

  def test_the_load_balancing_loss(self):
    layer = make(num_experts=4, balance=0.1)
    x = tokens(2, 9).astype(jnp.float32)
    mask = jnp.ones((2, 9), bool).at[0, 5:].set(False)
    layer(x, mask=mask)
    self.assertEqual(layer.balance_loss[...], 0)
    layer(x, mask=mask, train=True)
    shares = jax.nn.softmax(layer.router(x))[mask]
    hits = np.zeros(4)
    for row in shares:
      hits[np.argsort(row)[-2:]] += 1
    want = 0.1 * 4 * (hits / len(shares) * shares.mean(0)).sum()
    np.testing.assert_allclose(layer.balance_loss[...], want, rtol=1e-6)
    # It is at least K, and that if the load is even.
    layer.router.kernel[...] = jnp.zeros((D, 4))
    layer(x, train=True)
    np.testing.assert_allclose(layer.balance_loss[...], 0.1 * 2, rtol=1e-6)

  @parameterized.parameters(
      (dict(num_experts=0), 'num_experts. must be at least 1, got 0'),
      (dict(experts_per_token=9), 'must be from 1 to num_experts = 8, got 9'),
      (dict(num_groups=2), r"must be 1, or with scores='sigmoid'.*got 2"),
      (dict(num_groups=4, top_groups=5, scores='sigmoid'), 'num_groups = 4'),
      (dict(scores='tanh'), 'model.experts.scores must be .*softmax'),
      (dict(experts=3), 'no config field model.experts.experts.*num_experts'),
  )
  def test_errors(self, options, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      nnx.eval_shape(lambda: small.make(experts=options))


@functools.cache
def results(*sizes, dtype='float32'):
  """Loss and gradients of a model with experts, on a mesh of these sizes."""
  config = models.ModelConfig.tiny().replace(
      layer='dense;min_gru', num_layers=3, mlp='swiglu', dtype=dtype,
      scan_layers=True, remat='full', use_bias=False,
      experts=dict(num_experts=4, shared_features=8, balance=0.1),
      variants=dict(dense=dict(layer='min_gru', experts={})),
  )
  task = tasks.LanguageModelling(config)
  functional = state_lib.Functional(task.build)
  rng = np.random.default_rng(0)
  batch = {
      name: jnp.asarray(rng.integers(0, 16, (4, 8), np.int32))
      for name in ('inputs', 'targets')
  }
  names = 'data', 'fsdp', 'model', 'sequence'
  mesh = sharding.make_mesh(
      dict(zip(names, sizes)), jax.devices()[: int(np.prod(sizes))]
  )

  def loss(params, stats, batch):
    value, (sums, *_) = task.loss_fn(train=True)(
        params, stats, batch, None, None
    )
    return value, sums

  with jax.set_mesh(mesh):
    params, stats = functional.initialize(0)
    places = sharding.parameter_shardings(
        mesh, functional.params, functional.axes
    )
    params = jax.device_put(params, places)
    kernel = params['backbone']['stacks']['1']['experts']['mlp_in']
    grad = small.jit(jax.value_and_grad(loss, has_aux=True))
    found = grad(params, stats, batch)
  return jax.device_get(found), kernel.sharding.spec


class ExpertsInAModelTest(parameterized.TestCase):

  @parameterized.parameters(
      ((1, 1, 4, 1),), ((1, 2, 2, 1),), ((1, 1, 2, 2),), ((2, 1, 1, 1),),
  )
  def test_a_mesh_gives_the_same_numbers(self, sizes):
    want, _ = results(1, 1, 1, 1)
    got, spec = results(*sizes)
    self.assertEqual(spec[:3], (None, 'model', 'fsdp'))
    small.assert_trees_close(got, want, atol=2e-5)
    (value, sums), _ = want
    np.testing.assert_allclose(value, sums['loss'] + sums['balance'], rtol=1e-6)
    self.assertGreater(sums['balance'] / sums['weight'], 0.1 * 2 * 2 - 1e-3)

  def test_bfloat16_on_a_mesh(self):
    want, _ = results(1, 1, 1, 1)
    got, _ = results(1, 2, 2, 1, dtype='bfloat16')
    np.testing.assert_allclose(got[0][0], want[0][0], rtol=0.02)


if __name__ == '__main__':
  absltest.main()
