"""Shared blocks: equations, uses, and parameters that exist once."""

import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import errors
from rnnzoo import models
from rnnzoo.models import blocks
from rnnzoo.models import inputs as inputs_lib
from rnnzoo.models import shared as shared_lib
from rnnzoo.training import checkpoint
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from scipy import special
from tests import drawn
from tests.models import small

_OPTIONS = dict(
    num_heads=2, window=16, mlp_features=12, adapter_rank=3,
    attention_adapters=True,
)
# Both shared blocks are used twice.
_CHANGES = dict(
    layer='lru,a,b', num_layers=6, mlp='none', shared_options=_OPTIONS,
    variants=dict(
        a=dict(layer='lru', shared_block=1), b=dict(layer='gru', shared_block=2)
    ),
)


def shared_block(p, use, x, first):
  """A shared block in float64, for one sequence `[T, D]`."""
  features, heads = x.shape[1], _OPTIONS['num_heads']
  size = 2 * features // heads

  def norm(u, scale):
    return u / np.sqrt((u**2).mean(-1, keepdims=True) + 1e-6) * scale

  def added(u, adapter):
    up = adapter['up']['kernel']
    return u @ adapter['down']['kernel'] @ up.reshape(up.shape[0], -1)

  u = norm(np.concatenate([x, first], axis=1), p['norm']['scale'])
  q, k, v = (
      (u @ p['attention'][name]['kernel'] + added(u, use['attention'][name]))
      .reshape(-1, heads, size) for name in ('query', 'key', 'value')
  )
  y = np.zeros_like(q)
  for t in range(len(x)):
    for h in range(heads):
      weights = special.softmax(q[t, h] @ k[: t + 1, h].T / (size / 2) ** 0.5)
      y[t, h] = weights @ v[: t + 1, h]
  y = y.reshape(len(x), -1) @ p['attention']['output']['kernel']
  y = norm(y, p['mlp_norm']['scale'])
  more = np.split(added(y, use['mlp']), 2, axis=1)
  gate, inner = (
      y @ p[name]['kernel'] + part
      for name, part in zip(('mlp_gate', 'mlp_in'), more)
  )
  y = gate * special.ndtr(gate) * inner @ p['mlp_out']['kernel']
  return y @ use['output']['kernel']


class SharedTest(parameterized.TestCase):

  def test_equals_the_equations_in_numpy(self):
    block = drawn.module(lambda rngs: models.SharedBlock(
        6, rotary_fraction=0.0, rngs=rngs, **_OPTIONS
    ))
    use = drawn.module(lambda rngs: models.SharedUse(block, rngs=rngs))
    rng = np.random.default_rng(0)
    x, first = rng.standard_normal((2, 2, 7, 6))
    carry, got = block(
        use, block.initialize_carry(2), jnp.float32(x), jnp.float32(first)
    )
    plain = lambda module: jax.tree.map(
        np.float64, nnx.to_pure_dict(nnx.state(module, nnx.Param))
    )
    for i in range(2):
      want = shared_block(plain(block), plain(use), x[i], first[i])
      np.testing.assert_allclose(got[i], want, atol=1e-5, rtol=1e-5)
    self.assertEqual(carry.count.tolist(), [7, 7])

  def test_uses_share_parameters_and_nothing_else(self):
    functional = state_lib.Functional(lambda rngs: small_model(rngs))
    backbone = functional.params['backbone']
    self.assertSameElements(backbone['shared'], ['0', '1'])
    features = models.ModelConfig.tiny().features
    self.assertEqual(
        backbone['shared']['1']['attention']['query']['kernel'].shape,
        (2 * features, 2 * features),
    )
    uses = [
        stack['use']['output']['kernel'].shape if 'use' in stack else None
        for _, stack in sorted(backbone['stacks'].items())
    ]
    self.assertEqual(uses, [None, (2, 8, 8), (2, 8, 8)])
    axes = functional.axes['backbone']['shared']['0']
    self.assertEqual(
        axes['attention']['key']['kernel'], ('embed', 'hidden')
    )
    self.assertEqual(axes['mlp_out']['kernel'], ('mlp', 'embed'))

  def test_a_number_without_a_use(self):
    config = models.ModelConfig.tiny().replace(**_CHANGES | dict(
        variants=dict(
            a=dict(layer='lru', shared_block=1),
            b=dict(layer='gru', shared_block=3),
        ),
    ))
    with self.assertRaisesRegex(
        errors.UserValueError, 'no block uses shared block 2, and one uses 3'
    ):
      models.LanguageModel(config, rngs=nnx.Rngs(0))

  def test_a_model_is_its_blocks_in_order(self):
    # Each use gets a copy of its own; the gradient of what they share is the
    # sum over the copies. The model runs a loop, on a mesh of four devices.
    functional = state_lib.Functional(small_model)
    params = jax.tree.map(
        lambda u, i: 0.3 * jax.random.normal(jax.random.key(i), u.shape),
        functional.params,
        jax.tree.unflatten(
            jax.tree.structure(functional.params),
            range(len(jax.tree.leaves(functional.params))),
        ),
    )
    tokens, flags = small.inputs()
    mesh = sharding.make_mesh(
        dict(data=1, fsdp=2, model=2, sequence=1), jax.devices()[:4]
    )

    def loss(params):
      model = functional.merge(params, {})
      carry, y = model(tokens, **flags)
      return (y**2).sum(), (carry, y)

    def by_hand(copies):
      model = functional.merge(params, {})
      config, carries = model.config, model.initialize_carry(len(tokens))
      x = inputs_lib.embed(config, model.embed, tokens)
      x = first = jnp.where(flags['mask'][..., None], x, 0)
      found, copies = {}, list(copies)
      for depth in range(config.num_layers):
        stack, index = depth % 3, depth // 3
        take = lambda u: u[index]
        graphdef, state = nnx.split(model.backbone.stacks[stack])
        block = nnx.merge(graphdef, jax.tree.map(take, state))
        number, shared = config.at_depth(depth).shared_block, None
        if number:
          structure = nnx.split(model.backbone.shared[number - 1])[0]
          shared = shared_lib.SharedInput(
              nnx.merge(structure, copies.pop(0)), first
          )
        found[depth], x, _ = block(
            x, jax.tree.map(take, carries[stack]), **flags, shared=shared
        )
      y = model.norm(jnp.where(flags['mask'][..., None], x, 0))
      y = jnp.where(flags['mask'][..., None], model.logits(y), 0)
      return (y**2).sum(), (found, y)

    model = functional.merge(params, {})
    copies = [
        nnx.state(model.backbone.shared[i]) for i in (0, 1, 0, 1)
    ]
    (_, (found, y)), grads = small.jit(
        jax.value_and_grad(by_hand, has_aux=True)
    )(copies)
    with jax.set_mesh(mesh):
      placed = jax.device_put(params, sharding.parameter_shardings(
          mesh, params, functional.axes
      ))
      kernel = placed['backbone']['shared']['0']['mlp_in']['kernel']
      self.assertEqual(kernel.sharding.spec, jax.P('fsdp', 'model'))
      (_, (carry, got)), grad = small.jit(
          jax.value_and_grad(loss, has_aux=True)
      )(placed)
    np.testing.assert_allclose(got, y, atol=1e-4)
    for depth, one in found.items():
      small.assert_trees_close(
          jax.tree.map(lambda u: u[depth // 3], carry[depth % 3]), one,
          atol=1e-4,
      )
    for i in range(2):
      sums = jax.tree.map(jnp.add, grads[i], grads[i + 2])
      small.assert_trees_close(
          grad['backbone']['shared'][str(i)], nnx.to_pure_dict(sums), atol=2e-3
      )

    # Steps, and back from a checkpoint.
    with tempfile.TemporaryDirectory() as folder:
      with checkpoint.Checkpointer(folder) as saved:
        saved.save(1, dict(params=placed), {})
        _, state, _ = saved.restore(dict(params=functional.params))
    small.assert_trees_close(state['params'], params, atol=0)
    step = small.jit(lambda carry, token, flags: functional.merge(
        state['params'], {}
    ).step(carry, token, **flags))
    carry = model.initialize_carry(len(tokens))
    for t in range(tokens.shape[1]):
      carry, logits = step(carry, tokens[:, t], small.part(flags, t))
      np.testing.assert_allclose(logits, y[:, t], atol=1e-4)
    own = carry[1].shared.key
    self.assertGreater(np.abs(own[0] - own[1]).max(), 1e-3)

  def test_a_full_carry(self):
    model = small_model(nnx.Rngs(0), on_full='error', window=3)
    self.assertEqual(model.context, 3)
    with self.assertRaisesRegex(errors.UserValueError, 'a context of 3'):
      model(jnp.ones((1, 4), int))

  @parameterized.parameters(
      (dict(shared_options=dict(heads=3)), 'no config field model.shared_opt'),
      (dict(shared_options=dict(num_heads=3)), 'must divide `in_features`'),
      (dict(shared_options=dict(attention_adapters=True)), 'at least 1 with'),
      (dict(shared_options=dict(mlp_features=0)), '`mlp_features` must be at'),
      (dict(shared_block=-1), 'model.shared_block must not be negative'),
      (dict(layer='mlp', mlp='none'), "needs a model.mlp other than 'none'"),
      (dict(layer='mlp', shared_block=1), 'no model.shared_block; got'),
  )
  def test_wrong_options(self, changes, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      nnx.eval_shape(lambda: small.make(**dict(shared_block=1) | changes))


class NoLayerTest(absltest.TestCase):

  def test_a_block_that_is_only_an_mlp(self):
    model = drawn.module(lambda rngs: small.make(
        layer='lru,mlp', num_layers=2, mlp='relu2', mlp_layers='mlp',
    ))
    block = model.backbone.stacks[1]
    self.assertTrue(block.causal)
    self.assertFalse(hasattr(model.backbone.stacks[0], 'mlp_in'))
    one = nnx.merge(*(
        jax.tree.map(lambda u: u[0], part) if i else part
        for i, part in enumerate(nnx.split(block))
    ))
    x = np.random.default_rng(0).standard_normal((2, 3, 8), np.float32)
    carry, y, _ = one(jnp.asarray(x), one.initialize_carry(2))
    self.assertEqual(carry, blocks.BlockCarry(None, None))
    u = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    u = u * one.mlp_norm.scale[...]
    u = np.maximum(u @ one.mlp_in.kernel[...] + one.mlp_in.bias[...], 0) ** 2
    want = x + u @ one.mlp_out.kernel[...] + one.mlp_out.bias[...]
    np.testing.assert_allclose(y, want, atol=1e-5)
    tokens, _ = small.inputs()
    carry, logits = model(tokens)
    early, _ = model(tokens[:, :-1])
    _, last = model.step(early, tokens[:, -1])
    np.testing.assert_allclose(last, logits[:, -1], atol=1e-5)


def small_model(rngs, **options):
  """Returns a language model with shared blocks, whose blocks run in a loop."""
  config = models.ModelConfig.tiny().replace(
      **_CHANGES | dict(shared_options=_OPTIONS | options), scan_layers=True
  )
  return models.LanguageModel(config, rngs=rngs)


if __name__ == '__main__':
  absltest.main()
