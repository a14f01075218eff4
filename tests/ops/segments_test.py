"""Ops whose time is split over devices give the numbers of one device.

mesh_test.py has these tests for `linear_scan` and the ops that consist of it.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple
from unittest import mock

from absl.testing import parameterized
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
from rnnzoo import mesh as mesh_lib
from rnnzoo import ops
from tests import collectives
from tests import tolerance

_BATCH, _HEADS, _KEYS, _VALUES = 2, 4, 3, 5
_SEGMENTS = 4

_jit = functools.partial(jax.jit, compiler_options=collectives.QUICKLY)


class Case(NamedTuple):
  """An op: `run(tokens, state, **flags)` gives `(state, y)`."""

  run: Callable
  tokens: tuple  # Sizes and one of _KINDS of each, `[B, T, *sizes]`.
  state: tuple  # Sizes of each of its arrays `[B, *sizes]`.
  state_kind: str = 'any'

  def operands(self, time, dtype=np.float64):
    rng = np.random.default_rng(0)
    make = lambda shape, kind: _KINDS[kind](
        rng.standard_normal(shape)
    ).astype(dtype)
    return (
        [make((_BATCH, time, *sizes), kind) for sizes, kind in self.tokens],
        [make((_BATCH, *sizes), self.state_kind) for sizes in self.state],
    )


_KINDS = dict(
    any=lambda u: u,
    wide=lambda u: 3 * u,
    decay=lambda u: -np.abs(u),
    positive=np.abs,
    unit=lambda u: u / np.linalg.norm(u, axis=-1, keepdims=True),
    part=lambda u: 1 / (1 + np.exp(-u)),
    gram=lambda u: u @ u.swapaxes(-1, -2),
)
_KEY, _VALUE = ((_HEADS, _KEYS), 'any'), ((_HEADS, _VALUES), 'any')
_UNIT, _GATE = ((_HEADS, _KEYS), 'unit'), ((_HEADS,), 'wide')
_SHARED = ((2, _KEYS), 'any')  # By two heads each.
_MATRIX = (_HEADS, _KEYS, _VALUES)


def _linear_attention(tokens, state, **flags):
  q, k, v, *g = tokens
  return ops.linear_attention(
      q, k, v, *state, log_decay=g[0] if g else None, chunk_size=2, **flags
  )


def _fading(tokens, state, **flags):
  log_decay = -jnp.arange(1, _HEADS + 1, dtype=tokens[0].dtype) / 8
  return ops.linear_attention(
      *tokens, *state, log_decay=log_decay, chunk_size=2, **flags
  )


def _with_bonus(tokens, state, **flags):
  *tokens, g = tokens
  bonus = jnp.arange(_HEADS * _KEYS, dtype=g.dtype).reshape(_HEADS, _KEYS)
  return ops.linear_attention(
      *tokens, *state, log_decay=g, bonus=bonus, chunk_size=2, **flags
  )


def _mlstm(tokens, state, **flags):
  state, y = ops.mlstm(
      *tokens, ops.MLSTMState(*state), chunk_size=2, **flags
  )
  return tuple(state), y


def _gated_delta_rule(tokens, state, **flags):
  *tokens, g = tokens
  return ops.delta_rule(
      *tokens, *state, log_decay=g, chunk_size=2, **flags
  )


def _dplr_scan(tokens, state, **flags):
  q, k, v, a, amount, g = tokens
  return ops.dplr_scan(
      q, k, v, -a, a * amount, *state, log_decay=g, chunk_size=2, **flags
  )


def _mesa_scan(tokens, state, **flags):
  *tokens, g = tokens
  state, y = ops.mesa_scan(
      *tokens, jnp.ones((_HEADS, _KEYS), g.dtype), ops.MesaState(*state),
      log_decay=g, num_iterations=_KEYS, chunk_size=2, **flags,
  )
  return tuple(state), y


def _selective_scan(tokens, state, **flags):
  rates = -1.0 - jnp.arange(_VALUES * 3, dtype=tokens[0].dtype)
  x, delta, b, c = tokens
  return ops.selective_scan(
      x, delta, rates.reshape(_VALUES, 3) / 8, b, c, *state, chunk_size=3,
      **flags,
  )


def _lti_scan(tokens, state, **flags):
  rng = np.random.default_rng(3)
  dtype = tokens[0].dtype
  a = np.asarray(0.4 * rng.standard_normal((_KEYS, _KEYS)), dtype)
  b, c = np.ones(_KEYS, dtype), np.ones((_HEADS, _KEYS, _VALUES), dtype)
  return ops.lti_scan(a, b, c, *tokens, *state, **flags)


def _local_attention(tokens, state, **flags):
  cache = ops.AttentionCache(*state, jnp.array([2, 33], jnp.int32))
  cache, y = ops.local_attention(*tokens, cache, chunk_size=4, **flags)
  return tuple(u.astype(y.dtype) for u in cache), y


def _attention(window):
  ring = window, 2, _KEYS
  return Case(_local_attention, (_KEY, _SHARED, _SHARED), (ring, ring))


_CASES = dict(
    linear_attention=Case(
        _linear_attention, (_SHARED, _SHARED, _VALUE), (_MATRIX,)
    ),
    decay_of_heads=Case(_fading, (_SHARED, _SHARED, _VALUE), (_MATRIX,)),
    decay_of_tokens=Case(
        _linear_attention,
        (_SHARED, _SHARED, _VALUE, ((_HEADS,), 'decay')), (_MATRIX,),
    ),
    decay_of_features=Case(
        _with_bonus, (_KEY, _KEY, _VALUE, ((_HEADS, _KEYS), 'decay')),
        (_MATRIX,),
    ),
    mlstm=Case(
        _mlstm, (_KEY, _KEY, _VALUE, _GATE, _GATE),
        (_MATRIX, (_HEADS, _KEYS), (_HEADS,)),
    ),
    delta_rule=Case(
        lambda tokens, state, **flags: ops.delta_rule(
            *tokens, *state, chunk_size=2, **flags
        ),
        (_KEY, _UNIT, _VALUE, ((_HEADS,), 'part')), (_MATRIX,),
    ),
    gated_delta_rule=Case(
        _gated_delta_rule,
        (_KEY, _UNIT, _VALUE, ((_HEADS,), 'part'), ((_HEADS,), 'decay')),
        (_MATRIX,),
    ),
    dplr_scan=Case(
        _dplr_scan,
        (
            _KEY, _KEY, _VALUE, _UNIT, ((_HEADS, _KEYS), 'part'),
            ((_HEADS, _KEYS), 'decay'),
        ),
        (_MATRIX,),
    ),
    mesa_scan=Case(
        _mesa_scan,
        (_KEY, _UNIT, _KEY, ((_HEADS,), 'part'), ((_HEADS,), 'decay')),
        ((_HEADS, _KEYS, _KEYS),) * 2, 'gram',
    ),
    selective_scan=Case(
        _selective_scan,
        (
            ((_VALUES,), 'any'), ((_VALUES,), 'positive'), ((3,), 'any'),
            ((3,), 'any'),
        ),
        ((_VALUES, 3),),
    ),
    lti_scan=Case(
        _lti_scan, (((_HEADS,), 'any'),), ((_HEADS, _KEYS),),
    ),
    attention_to_few=_attention(3),
    attention_to_many=_attention(12),  # Their windows reach two segments back.
)


def _flags(time):
  rng = np.random.default_rng(1)
  reset = rng.random((_BATCH, time)) < 0.1
  mask = rng.random((_BATCH, time)) < 0.7
  mask[:, 8:16] = False  # A whole segment.
  return dict(reset=reset, mask=mask)


def _with_gradients(case, visible=None, **flags):
  """Maps `(tokens, state)` to results and gradients of a sum of them."""

  def loss(operands):
    state, y = case.run(*operands, **flags)
    state = state if isinstance(state, tuple) else (state,)
    results = [*state, y]
    if visible is not None:
      y = jnp.where(visible.reshape(1, -1, *(1,) * (y.ndim - 2)), y, 0)
    weighed = [u for u in (*state, y) if u.ndim > 1]  # Not an integer.
    return sum(jnp.sin(u + 0.5).sum() for u in weighed), results

  return jax.value_and_grad(loss, has_aux=True)


class SegmentsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    if len(jax.devices()) < 8:
      self.skipTest('needs 8 devices')
    self.mesh = jax.make_mesh(
        (2, _SEGMENTS), ('data', 'sequence'), (AxisType.Auto,) * 2
    )

  @parameterized.product(name=tuple(_CASES), flagged=(True, False))
  def test_equals_one_device(self, name, flagged):
    case, time = _CASES[name], 8 * _SEGMENTS
    flags = _flags(time) if flagged else {}
    gather = mesh_lib.GATHER_UP_TO if flagged else 1
    run = lambda: _jit(_with_gradients(case, **flags))
    with jax.enable_x64(True):
      operands = case.operands(time)
      want = run()(operands)
      with (
          jax.set_mesh(self.mesh),
          mock.patch.object(mesh_lib, 'GATHER_UP_TO', gather),
      ):
        got = run()(operands)
      tolerance.assert_close(got, want)
      y = got[0][1][-1]
      self.assertEqual(y.sharding.shard_shape(y.shape)[:2], (1, 8))
    for gradient in jax.tree.leaves(want[1]):
      self.assertGreater(np.abs(gradient).max(), 1e-3)

  @parameterized.parameters(*_CASES)
  def test_no_tokens(self, name):
    tokens, state = _CASES[name].operands(0)
    with jax.enable_x64(True), jax.set_mesh(self.mesh):
      got, y = _jit(_CASES[name].run)(tokens, state)
    self.assertEqual(y.shape[:2], (_BATCH, 0))
    got = got[: len(state)] if isinstance(got, tuple) else (got,)
    tolerance.assert_close(list(got), state)

  @parameterized.parameters(*_CASES)
  def test_devices_exchange_no_sequences(self, name):
    case, time = _CASES[name], 256 * _SEGMENTS
    operands = case.operands(time, np.float32)
    put = lambda u: jax.device_put(
        u, jax.NamedSharding(self.mesh, P('data', 'sequence'))
    )
    with jax.set_mesh(self.mesh):
      operands = list(map(put, operands[0])), operands[1]
      text = _jit(_with_gradients(case)).lower(operands).compile().as_text()
    sizes = collectives.sizes(text)
    self.assertNotEmpty(sizes)
    # Less than the smallest sequence of one row.
    self.assertLess(max(size for _, size in sizes), time)

  @parameterized.parameters(*_CASES)
  def test_a_nan_stays_in_its_sequence(self, name):
    case, time = _CASES[name], 8 * _SEGMENTS
    reset = np.zeros((_BATCH, time), bool)
    reset[0, 18] = True  # In the third segment; the NaN is in the second.
    visible = np.arange(time) >= 18
    run = lambda: _jit(_with_gradients(case, visible, reset=reset))
    operands = case.operands(time, np.float32)
    tokens, state = case.operands(time, np.float32)
    for u in tokens:
      u[0, 9] = np.nan
    with jax.set_mesh(self.mesh):
      step = run()
      want, got = step(operands), step((tokens, state))
    (_, (*_, y)), _ = got
    self.assertTrue(np.isnan(y[0, 9]).all())
    self.assertTrue(np.isfinite(y[0, 18:]).all())

    def parts(result):
      (_, (*state, y)), (d_tokens, _) = result
      return (
          state, y[0, 18:], y[1], [u[0, 18:] for u in d_tokens],
          [u[1] for u in d_tokens],
      )

    tolerance.assert_close(parts(got), parts(want))
