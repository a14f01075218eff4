"""Recurrences with levels: against their formulas in float64; NaN, a mesh."""

import functools

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
from rnnzoo import ops
from rnnzoo.layers import base
from tests import collectives
from tests import tolerance

f32 = np.float32
_HEADS, _KEYS, _VALUES = 4, 3, 2


def operands(
    groups=2, levels=6, batch=2, time=19, seed=0, delta_rule=False
):
  """Random operands by name and flags, float64."""
  random = np.random.default_rng(seed)
  normal = lambda *shape: random.standard_normal(shape)
  shape = batch, time
  arguments = dict(
      q=normal(*shape, groups, _KEYS),
      k=normal(*shape, groups, _KEYS),
      v=normal(*shape, _HEADS, _VALUES),
      level_scales=normal(*shape, _HEADS, levels),
      log_decay=-np.exp(normal(*shape, _HEADS) - 2),
  )
  flags = dict(
      reset=random.random(shape) < 0.06, mask=random.random(shape) < 0.9
  )
  if delta_rule:
    arguments['beta'] = random.random((*shape, _HEADS))
  return arguments, flags


def level(t, s, levels):
  """The level of position s for position t, as the paper defines it."""
  if s == t:
    return 0
  for n in range(1, 64):
    size = 2 ** (n - 1)
    end = t // size * size
    if t // size % 2 and end - size <= s < end:
      return min(n, levels - 1)
  raise AssertionError


def formula(
    q, k, v, level_scales, log_decay, beta=None, reset=None, mask=None,
    scale=1.0,
):
  """Every pair of tokens of a sequence, and the states after the last one.

  With `beta`, transitions are those of the delta rule.
  """
  batch, time, heads, _ = v.shape
  keys, levels = q.shape[3], level_scales.shape[3]
  q, k = (np.repeat(u, heads // u.shape[2], axis=2) for u in (q, k))
  y = np.zeros(v.shape)
  S = np.zeros((batch, heads, levels - 1, keys, v.shape[3]))
  counts = np.zeros(batch, np.int32)
  for i, h in np.ndindex(batch, heads):
    written = []  # What each token of the sequence wrote, as it is now.
    for t in range(time):
      if mask is not None and not mask[i, t]:
        continue
      if reset is not None and reset[i, t]:
        written = []
      key, value = k[i, t, h], v[i, t, h]
      transition = np.exp(log_decay[i, t, h]) * np.eye(keys)
      if beta is not None:
        transition -= transition @ np.outer(beta[i, t, h] * key, key)
        value = beta[i, t, h] * value
      written = [transition @ u for u in written] + [np.outer(key, value)]
      for s, u in enumerate(written):
        at = level(len(written) - 1, s, levels)
        y[i, t, h] += scale * level_scales[i, t, h, at] * (q[i, t, h] @ u)
    counts[i] = len(written)
    for s, u in enumerate(written):
      S[i, h, level(len(written), s, levels) - 1] += u
  return ops.LevelState(S, counts), y


def chunked(
    q, k, v, level_scales, log_decay, beta=None, state=None, chunk_size=4,
    **options
):
  options |= dict(state=state, log_decay=log_decay, chunk_size=chunk_size)
  if beta is None:
    return ops.log_linear_attention(q, k, v, level_scales, **options)
  return ops.log_linear_delta_rule(q, k, v, beta, level_scales, **options)


def scanned(
    q, k, v, level_scales, log_decay, state, beta=None, reset=None, mask=None,
    scale=1.0,
):
  """The step, one token after the other."""

  def body(state, token):
    q, k, v, beta, scales, g, reset, mask = token
    if reset is not None:
      state = base.select(reset, jax.tree.map(jnp.zeros_like, state), state)
    options = dict(log_decay=g, scale=scale, mask=mask)
    if beta is None:
      return ops.log_linear_attention_step(q, k, v, scales, state, **options)
    return ops.log_linear_delta_rule_step(
        q, k, v, beta, scales, state, **options
    )

  if reset is not None and mask is not None:
    reset = reset & mask
  tokens = q, k, v, beta, level_scales, log_decay, reset, mask
  state, y = jax.lax.scan(
      body, state, jax.tree.map(lambda u: jnp.moveaxis(u, 1, 0), tokens)
  )
  return state, jnp.moveaxis(y, 0, 1)


def some_state(levels=6, batch=2, count=(5, 6)):
  random = np.random.default_rng(3)
  S = random.standard_normal((batch, _HEADS, levels - 1, _KEYS, _VALUES))
  return ops.LevelState(S, np.array(count[:batch], np.int32))


def with_gradients(function, arguments, state, **options):
  """Values, and the gradients of their sum in every operand."""

  def loss(arguments, S):
    new, y = function(
        **arguments, state=ops.LevelState(S, state.count), **options
    )
    return jnp.sin(new.levels).sum() + jnp.sin(y).sum(), (new, y)

  (_, results), gradients = jax.jit(
      jax.value_and_grad(loss, argnums=(0, 1), has_aux=True),
      compiler_options=collectives.QUICKLY,
  )(arguments, state.levels)
  return results, gradients


class LogLinearAttentionTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, 6, True), (2, 6, False), (4, 3, True), (4, 6, False, True),
      (4, 3, True, True),
  )
  def test_matches_the_formula_and_its_steps(
      self, groups, levels, flagged, delta_rule=False
  ):
    """Also with 3 levels, where older tokens join the last one."""
    arguments, flags = operands(groups, levels, delta_rule=delta_rule)
    options = dict(scale=0.5, **(flags if flagged else {}))
    want = formula(**arguments, **options)
    with jax.enable_x64(True):
      got = jax.jit(functools.partial(chunked, **options))(**arguments)
      tolerance.assert_close(got, want)
      # In two calls: the state of one is the start of the other.
      cut = lambda tree, part: {n: u[:, part] for n, u in tree.items()}
      if not flagged:
        state, first = chunked(**cut(arguments, slice(7)), scale=0.5)
        state, second = chunked(
            **cut(arguments, slice(7, None)), scale=0.5, state=state
        )
        tolerance.assert_close(
            (state, np.concatenate([first, second], axis=1)), want
        )
      state = some_state(levels)
      tolerance.assert_close(
          with_gradients(chunked, arguments, state, **options),
          with_gradients(scanned, arguments, state, **options),
      )

  @parameterized.parameters(0, 1)
  def test_short_sequences(self, time):
    arguments, _ = operands(time=time)
    with jax.enable_x64(True):
      tolerance.assert_close(chunked(**arguments), formula(**arguments))

  @parameterized.parameters(False, True)
  def test_scales_of_one_give_the_recurrence_without_levels(self, delta_rule):
    arguments, flags = operands(4, delta_rule=delta_rule)
    arguments['level_scales'] = np.ones_like(arguments['level_scales'])
    with jax.enable_x64(True):
      state, y = chunked(**arguments, **flags)
      del arguments['level_scales']
      plain = ops.delta_rule if delta_rule else ops.linear_attention
      want = plain(**arguments, **flags)
      tolerance.assert_close((state.levels.sum(2), y), want)

  def test_very_strong_decays(self):
    arguments, _ = operands()
    g = np.random.default_rng(1).choice(
        [0, -1e-7, -1, -30, -1e4, -1e30, -np.inf], arguments['v'].shape[:3]
    )
    arguments['log_decay'] = g
    results, gradients = with_gradients(
        chunked, jax.tree.map(f32, arguments),
        jax.tree.map(np.zeros_like, some_state()),
    )
    with np.errstate(all='ignore'):
      tolerance.assert_close(results, formula(**arguments), f32)
    for gradient in jax.tree.leaves(gradients):
      self.assertTrue(np.isfinite(gradient).all())

  @parameterized.parameters(False, True)
  def test_nan_before_a_reset_or_in_padding_is_contained(self, delta_rule):
    arguments, _ = operands(4, batch=1, time=11, delta_rule=delta_rule)
    arguments = jax.tree.map(f32, arguments)
    state = some_state(batch=1)
    place = np.arange(11)
    flags = dict(reset=place[None] == 6, mask=place[None] != 8)
    real = (place >= 6) & (place != 8)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(arguments, S):
      new, y = chunked(**arguments, state=state._replace(levels=S), **flags)
      return new.levels.sum() + y[:, 6:].sum(), (new, y)

    spoil = lambda u: f32(
        np.where(real.reshape((-1,) + (1,) * (u.ndim - 2)), u, np.nan)
    )
    S = f32(state.levels)
    (_, want), d_want = run(arguments, S)
    (_, got), d_got = run(jax.tree.map(spoil, arguments), np.nan * S)
    np.testing.assert_array_equal(got[0].levels, want[0].levels)
    self.assertTrue(np.isfinite(want[0].levels).all())
    np.testing.assert_array_equal(got[0].count, 4)
    np.testing.assert_array_equal(got[1][:, 6:], want[1][:, 6:])
    self.assertTrue(np.isnan(got[1][:, :6]).all())
    np.testing.assert_array_equal(d_got[1], 0)
    for name, d in d_got[0].items():
      np.testing.assert_array_equal(d[:, 6:], d_want[0][name][:, 6:])
      np.testing.assert_array_equal(d[:, 8], 0)

  def test_states_are_float32_at_least(self):
    arguments, _ = operands(time=4)
    half = jax.tree.map(jnp.bfloat16, arguments)
    state, y = chunked(**half)
    self.assertEqual(
        (state.levels.dtype, state.count.dtype, y.dtype),
        (jnp.float32, jnp.int32, jnp.bfloat16),
    )
    wide = jax.tree.map(np.float64, half)
    tolerance.assert_close((state, y), formula(**wide), jnp.bfloat16)
    state, y = ops.log_linear_attention_step(
        *(half[n][:, 0] for n in ('q', 'k', 'v', 'level_scales')), state
    )
    self.assertEqual(
        (state.levels.dtype, y.dtype), (jnp.float32, jnp.bfloat16)
    )

  @parameterized.parameters((1, (1, 2, 4)), (4, (2, 2, 2), True))
  def test_on_a_mesh(self, groups, sizes, delta_rule=False):
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    arguments, flags = operands(groups, time=16, delta_rule=delta_rule)
    arguments, state = jax.tree.map(
        lambda u: f32(u) if u.dtype == float else u, (arguments, some_state())
    )
    want = with_gradients(chunked, arguments, state, **flags)
    names = 'data', 'model', 'sequence'
    mesh = jax.make_mesh(sizes, names, (AxisType.Auto,) * 3)
    with jax.set_mesh(mesh):
      got = with_gradients(chunked, arguments, state, **flags)
    tolerance.assert_close(got, want, f32)
    y = got[0][1]
    rows, _, heads, _ = y.sharding.shard_shape(y.shape)
    self.assertEqual((rows, heads), (2 // sizes[0], _HEADS // sizes[1]))

  def test_memory_is_held_to_chunks(self):
    shape = 1, 4096, 2
    of = lambda n: jax.ShapeDtypeStruct((*shape, n), jnp.float32)
    arguments = dict(
        q=of(32), k=of(32), v=of(32), level_scales=of(13),
        log_decay=jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    loss = lambda arguments: (
        chunked(**arguments, chunk_size=128)[1] ** 2
    ).sum()
    compiled = jax.jit(jax.grad(loss)).lower(arguments).compile()
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    # The states between chunks, and less than twice the operands.
    states = 4 * 2 * 12 * 32 * 32 * (4096 // 128)
    tokens = sum(4 * np.prod(u.shape) for u in arguments.values())
    self.assertLess(temporaries, states + 2 * tokens)

  @parameterized.parameters(
      ('q', np.zeros((2, 19, 3, 3), f32), r'G a divisor of 4'),
      ('level_scales', np.zeros((2, 19, 4), f32),
       r'`level_scales` must be \[B, T, H, L\], \(2, 19, 4\) and L, got'),
      ('level_scales', np.zeros((2, 19, 4, 6), np.int32), 'must be floating'),
      ('level_scales', np.zeros((2, 19, 4, 1), f32), '2 to 25 levels, got 1'),
      ('log_decay', np.zeros((4,), f32), r'`log_decay` must be \[B, T, H\]'),
      ('log_decay', np.zeros((2, 19, 3), f32), r'`log_decay` must be \(4,\)'),
      ('state', some_state(5), r'`state.levels` must be \(2, 4, 5, 3, 2\)'),
      ('chunk_size', 6, '`chunk_size` must be a power of two, got 6'),
  )
  def test_bad_input_names_the_argument(self, name, value, message):
    arguments = operands()[0] | {name: value}
    with self.assertRaisesRegex(ValueError, message):
      chunked(**arguments)

  def test_the_delta_rule_names_them_too(self):
    arguments, _ = operands(4, delta_rule=True)
    for name, value, message in (
        ('beta', np.zeros((2, 19), f32), '`beta` must be'),
        ('level_scales', np.zeros((2, 19, 4, 26), f32), '2 to 25 .* got 26'),
        ('state', some_state(5), r'`state.levels` must be \(2, 4, 5, 3, 2\)'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        chunked(**arguments | {name: value})

  def test_sequences_longer_than_their_levels_raise(self):
    arguments, _ = operands(levels=5)  # For 16 tokens; there are 19.
    message = '5 levels hold sequences of at most 16 tokens, got 19; take 6'
    for run in (chunked, jax.jit(chunked)):
      with self.assertRaisesRegex(ValueError, message):
        run(**arguments)
    place = np.arange(19)[None].repeat(2, axis=0)
    chunked(**arguments, reset=place == 3)
    chunked(**arguments, mask=place < 16)
    for flags in (dict(reset=place == 17), dict(mask=place != 2)):
      with self.assertRaisesRegex(ValueError, 'at most 16 tokens, got 1[78];'):
        chunked(**arguments, **flags)
    state = some_state(5, count=(0, 15))
    first = jax.tree.map(lambda u: u[:, :2], arguments)
    with self.assertRaisesRegex(ValueError, 'at most 16 tokens, got 17;'):
      chunked(**first, state=state)
    token = [first[n][:, 0] for n in ('q', 'k', 'v', 'level_scales')]
    state, _ = ops.log_linear_attention_step(*token, state)
    with self.assertRaisesRegex(ValueError, 'at most 16 tokens, got 17;'):
      ops.log_linear_attention_step(*token, state)
