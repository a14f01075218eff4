"""Tests of `rnnzoo.training.optimizers`."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import optax
from rnnzoo import errors
from rnnzoo.training import optimizers

PARAMS = dict(
    embed=dict(table=jnp.ones((3, 2))),
    stacks={'0': dict(decay=jnp.ones((2, 2)), kernel=jnp.ones((2, 2, 2)))},
    norm=dict(scale=jnp.ones((2, 2))),
)
# `layers` is depth: a scale per layer is a vector.
AXES = dict(
    embed=dict(table=('vocab', 'embed')),
    stacks={
        '0': dict(decay=('layers', None), kernel=('layers', 'embed', 'hidden'))
    },
    norm=dict(scale=('layers', None)),
)
RECURRENT = dict(
    embed=dict(table=False),
    stacks={'0': dict(decay=True, kernel=False)},
    norm=dict(scale=False),
)


def make(total_steps=10, axes=AXES, recurrent=RECURRENT, **fields):
  config = ConfigDict(dict(
      dict(
          name='sgd', start_learning_rate=0.0, learning_rate=0.5,
          end_learning_rate=0.1, warmup_steps=0, schedule='constant',
          weight_decay=0.0, recurrent_rate_factor=1.0, groups={}, clip=0.0,
          options={}, freeze=(),
      ),
      **fields,
  ))
  return optimizers.make_optimizer(
      config, total_steps, axes=axes, recurrent=recurrent
  )


def update(tx, grads=None):
  """The first update of all parameters, by the last part of their names."""
  grads = jax.tree.map(jnp.ones_like, PARAMS) if grads is None else grads
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  flat = jax.tree_util.tree_flatten_with_path(updates)[0]
  return {path[-1].key: np.unique(leaf).tolist() for path, leaf in flat}


class OptimizersTest(parameterized.TestCase):

  def test_recurrent_parameters_have_their_own_rate(self):
    found = update(make(recurrent_rate_factor=0.25))
    self.assertEqual(
        found, dict(decay=[-0.125], kernel=[-0.5], table=[-0.5], scale=[-0.5])
    )

  def test_recurrent_parameters_have_no_weight_decay(self):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    found = update(make(name='adamw', weight_decay=0.5), zeros)
    self.assertEqual(
        found, dict(decay=[0], kernel=[-0.25], table=[-0.25], scale=[0])
    )

  @parameterized.parameters(
      ('kernel', ('embed', 'heads'), True),
      ('kernel', ('layers', 'heads', None, None), True),
      ('bonus', ('layers', 'heads', None), False),
      ('scale', (None, 'hidden'), False),
      ('bias', ('layers', None, 'hidden'), False),
  )
  def test_only_matrices_are_decayed(self, name, axes, decayed):
    params = {name: jnp.ones((2,) * len(axes))}
    tx = make(
        name='adamw', weight_decay=0.5, axes={name: axes},
        recurrent={name: False},
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    self.assertEqual(bool((updates[name] != 0).all()), decayed)

  def test_groups_have_their_own_rate_and_weight_decay(self):
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    groups = dict(
        # A module, and a whole path.
        slow=dict(parameters=('norm', 'stacks.*dec*'), rate_factor=0.25),
        still=dict(parameters=('table',), decay=False),
    )
    tx = make(
        name='adamw', weight_decay=0.5, recurrent_rate_factor=0.1, groups=groups
    )
    self.assertEqual(
        update(tx, zeros),
        dict(decay=[-0.0625], scale=[-0.0625], kernel=[-0.25], table=[0]),
    )
    groups['rest'] = dict(rate_factor=3)
    # As a config keeps it: in the order of the alphabet.
    tx = make(name='adamw', weight_decay=0.5, groups=ConfigDict(groups))
    self.assertEqual(
        update(tx, zeros),
        dict(decay=[-0.0625], scale=[-0.0625], kernel=[-0.75], table=[0]),
    )
    groups = dict(fast=dict(parameters=('kernel',), rate_factor=2))
    found = update(make(recurrent_rate_factor=0.5, groups=groups))
    self.assertEqual(
        found, dict(decay=[-0.25], scale=[-0.5], kernel=[-1], table=[-0.5])
    )

  @parameterized.parameters(
      (dict(parameters=('kernl',)), 'no parameter matches .kernl.*"kernel"'),
      (dict(parameters=('scale', 'B_*')), r"no parameter matches 'B_\*'"),
      (dict(parameter=('scale',)), 'groups.slow.parameter.*"parameters"'),
      (dict(rate_factor=1.0), 'groups.slow has no `parameters`'),
      (dict(parameters=()), 'groups.slow has no `parameters`'),
      (dict(parameters=('scale',), rate_factor=-1.0), 'rate_factor must not'),
      (dict(parameters='scale'), 'parameters must be a tuple of strings'),
      (('scale',), 'groups.slow must be a dictionary'),
  )
  def test_wrong_groups_raise(self, group, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      make(groups=dict(slow=group))

  def test_a_parameter_is_in_one_group(self):
    groups = dict(
        slow=dict(parameters=('scale',)), still=dict(parameters=('norm',))
    )
    with self.assertRaisesRegex(
        errors.UserValueError, 'norm.scale is in slow and in still'
    ):
      make(groups=groups)
    with self.assertRaisesRegex(errors.UserValueError, 'rest must have no'):
      make(groups=dict(rest=dict(parameters=('norm',))))

  def test_clip_limits_the_global_norm(self):
    grads = jax.tree.map(lambda p: 100 * p, PARAMS)
    tx = make(clip=1.0)
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    self.assertAlmostEqual(float(optax.global_norm(updates)), 0.5, places=5)

  def test_frozen_parameters_do_not_change(self):
    freeze = ('embed', 'stacks.0.decay')
    found = update(make(name='adamw', weight_decay=0.5, freeze=freeze))
    self.assertEqual((found['table'], found['decay']), ([0], [0]))
    self.assertLess(max(found['kernel'] + found['scale']), 0)
    for name in ('emb', 'stacks.1'):
      with self.assertRaisesRegex(
          errors.UserValueError, f"no parameter starts with .*{name}.*'embed'"
      ):
        make(freeze=(name,))

  def test_frozen_gradients_have_no_influence(self):
    for gradient in (100.0, np.inf, np.nan):
      tx = make(learning_rate=1, clip=1.0, freeze=('embed',))
      grads = jax.tree.map(lambda p: jnp.full_like(p, 0.05), PARAMS)
      grads['embed']['table'] = jnp.full((3, 2), gradient)
      found = update(tx, grads)
      expected = [-np.float32(0.05)]
      self.assertEqual(found['table'], [0])
      self.assertEqual(found['kernel'] + found['scale'], 2 * expected)
    state = make(name='adamw', freeze=('embed',)).init(PARAMS)
    sizes = [u.size for u in jax.tree.leaves(state) if u.ndim]
    self.assertEqual(sum(sizes), 2 * (4 + 8 + 4))  # No moments of `table`.

  @parameterized.parameters(*optimizers.OPTIMIZERS)
  def test_every_optimizer_makes_an_update(self, name):
    options = dict(momentum=0.9) if name in ('sgd', 'adafactor') else {}
    tx = make(name=name, clip=1.0, options=options)
    found = update(tx)
    self.assertLess(max(v for values in found.values() for v in values), 0)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    state = tx.init(half)
    updates, after = tx.update(half, state, half)
    for u in jax.tree.leaves([updates, state, after]):
      self.assertIn(u.dtype, (jnp.float32, jnp.int32))

  def test_the_second_moment_of_bfloat16_parameters_decays(self):
    tx = make(name='adam', options=dict(b2=0.999))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    zeros = jax.tree.map(jnp.zeros_like, params)
    state = jax.tree.map(
        lambda u: jnp.full_like(u, 0.5) if u.ndim else u, tx.init(params)
    )
    state = jax.jit(lambda state: jax.lax.fori_loop(
        0, 3233, lambda _, s: tx.update(zeros, s, params)[1], state
    ))(state)
    moments = optax.tree.get(state, 'nu')
    np.testing.assert_allclose(
        moments['embed']['table'], 0.5 * 0.999**3233, rtol=1e-3
    )

  @parameterized.parameters(
      ('constant', 0, [0.5, 0.5, 0.5]),
      ('constant', 4, [0.0, 0.5, 0.5]),
      ('cosine', 0, [0.5, 0.3 + 0.2 * np.cos(0.4 * np.pi), 0.1]),
      ('cosine', 4, [0.0, 0.5, 0.1]),
      ('linear', 0, [0.5, 0.34, 0.1]),
      ('linear', 4, [0.0, 0.5, 0.1]),
      ('exponential', 0, [0.5, 0.5 * 0.2**0.4, 0.1]),
      ('exponential', 4, [0.0, 0.5, 0.1]),
  )
  def test_learning_rates_of_the_schedules(self, name, warmup, expected):
    config = ConfigDict(dict(
        schedule=name, learning_rate=0.5, end_learning_rate=0.1,
        warmup_steps=warmup, start_learning_rate=0.0,
    ))
    schedule = optimizers.make_schedule(config, 10)
    found = [float(schedule(count)) for count in (0, 4, 10)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    config.start_learning_rate = 0.2
    schedule = optimizers.make_schedule(config, 10)
    found = [float(schedule(count)) for count in (0, 2, 4, 10)]
    if warmup:
      expected = [0.2, 0.35, *expected[1:]]
    np.testing.assert_allclose(
        [found[0], *found[1:2] * bool(warmup), *found[2:]], expected, rtol=1e-6
    )

  @parameterized.parameters(
      (dict(name='admw'), 'Did you mean "adamw"'),
      (dict(schedule='cosin'), 'Did you mean "cosine"'),
      (dict(options=dict(momentun=0.9)), 'Did you mean "momentum"'),
      (dict(weight_decay=0.1), 'weight_decay must be 0: optax.sgd has none'),
  )
  def test_wrong_values_in_the_config_raise(self, fields, message):
    with self.assertRaisesRegex(errors.UserValueError, message):
      make(**fields)


if __name__ == '__main__':
  absltest.main()
