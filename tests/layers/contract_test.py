"""Every layer keeps the contract, and the suite that says so is no fool."""

import contextlib
import copy
import io
import itertools
import pickle

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rnnzoo import layers
from rnnzoo import mesh
from rnnzoo import testing
from rnnzoo.layers import base
from tests import drawn

# What options can break; the layer itself goes through all checks.
_OPTION_CHECKS = ('shapes', 'dtypes', 'errors', 'steps', 'reset', 'mask')


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(testing.LAYERS.items())
  def test_every_check_in_float64(self, make_layer):
    with jax.enable_x64(True):
      testing.check_layer(make_layer, dtypes=['float64'])

  @parameterized.named_parameters(testing.LAYERS.items())
  def test_steps_in_bfloat16(self, make_layer):
    testing.check_layer(make_layer, dtypes=['bfloat16'], checks=['steps'])

  # Golden numbers are in float32 too, and equality of forms is checked above.
  @parameterized.named_parameters(testing.LAYERS.items())
  @pytest.mark.long
  def test_steps_in_float32(self, make_layer):
    testing.check_layer(make_layer, dtypes=['float32'], checks=['steps'])

  @parameterized.named_parameters(testing.VARIANTS.items())
  def test_layers_with_options(self, make_layer):
    testing.check_layer(make_layer, dtypes=['float32'], checks=_OPTION_CHECKS)

  def test_non_causal_layers_skip_causal_checks_only(self):
    testing.check_layer(
        testing.VARIANTS['bidirectional'],
        dtypes=['float32'],
        checks=set(testing.CHECKS) - set(_OPTION_CHECKS),
    )

  def test_the_carry_that_an_error_suggests_is_accepted(self):
    x = jnp.ones((1, 2, 4))
    for layer in (
        layers.DeltaNet(4, num_heads=1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)),
        layers.Attention(
            4, num_heads=1, window=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
        ),
    ):
      with self.assertRaisesRegex(
          ValueError, r'initialize_carry\(batch_size, jnp.bfloat16\) makes one'
      ):
        layer(x, layer.initialize_carry(1, x.dtype))
      jax.eval_shape(layer, x, layer.initialize_carry(1, jnp.bfloat16))

  def test_every_layer_has_a_test_case(self):
    self.assertSameElements(testing.LAYERS, layers.LAYERS)
    for name, make_layer in testing.LAYERS.items():
      layer = drawn.module(make_layer)
      self.assertIs(type(layer), layers.LAYERS[name])
      with self.subTest(f'{name} can be copied'):
        want, pickled = nnx.split(layer), pickle.loads(pickle.dumps(layer))
        self.assertEqual(nnx.graphdef(pickled), want[0])
        for copied in (copy.deepcopy(layer), pickled):
          got = nnx.split(copied)
          leaves = map(jax.tree.leaves, (got[1], want[1]))
          for u, w in zip(*leaves, strict=True):
            np.testing.assert_array_equal(u, w)


class _Leaky(base.RecurrentLayer):
  """`h = a sigmoid(x) h + x`, all right; each subclass breaks one promise."""

  def __init__(self, features=4):
    self.in_features = self.out_features = features
    self.scale = nnx.Param(jnp.full((features,), 0.5))

  def initialize_carry(self, batch_size, dtype=None):
    return jnp.zeros((batch_size, self.in_features), self.state_dtype(dtype))

  def state_dtype(self, dtype):
    return base.state_dtype(dtype)

  def update(self, h, x, reset, mask):
    dtype, scale = x.dtype, self.scale[...].astype(h.dtype)
    entering = h if reset is None else self.restart(reset, h)
    x = x.astype(h.dtype)
    new = scale * jax.nn.sigmoid(x) * entering + x
    y = new.astype(dtype)
    if mask is None:
      return new, y
    return base.select(mask, new, h), base.masked(y, mask)

  def restart(self, reset, h):
    return jnp.where(reset[:, None], 0, h)

  def step(self, carry, x, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask, step=True)
    return self.update(carry, x, reset, mask)

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)
    by_time = lambda u: None if u is None else jnp.moveaxis(u, 1, 0)
    carry, y = jax.lax.scan(
        lambda h, u: self.update(h, *u),
        carry,
        (by_time(x), by_time(reset), by_time(mask)),
    )
    return carry, jnp.moveaxis(y, 0, 1)


class _ResetByMultiplication(_Leaky):

  def restart(self, reset, h):
    return h * ~reset[:, None]


class _ResetAfterwards(_Leaky):
  """Right in its values, also after a NaN; wrong in their gradients."""

  def update(self, h, x, reset, mask):
    new, y = super().update(h, x, None, mask)
    if reset is None:
      return new, y
    new = jnp.where(reset[:, None], x.astype(h.dtype), new)
    return new, jnp.where(reset[:, None], x, y)


class _MaskIgnored(_Leaky):

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    return super().__call__(x, carry, reset=reset)


class _CarryNotKept(_Leaky):
  """Padding gives zeros, but the state decays on."""

  def update(self, h, x, reset, mask):
    new, y = super().update(h, x, reset, None)
    return new, y if mask is None else base.masked(y, mask)


class _OtherStep(_Leaky):

  def step(self, carry, x, *, reset=None, mask=None):
    carry, y = super().step(carry, x, reset=reset, mask=mask)
    return carry, y * 1.001


class _CarryUnused(_Leaky):

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    super().__call__(x, carry, reset=reset, mask=mask)
    return super().__call__(x, reset=reset, mask=mask)


class _CarryDetached(_Leaky):

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    carry, y = super().__call__(x, carry, reset=reset, mask=mask)
    return jax.lax.stop_gradient(carry), y


class _CarryInBfloat16(_Leaky):

  def state_dtype(self, dtype):
    return dtype or jnp.float32


class _LooksAhead(_Leaky):

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    carry, y = super().__call__(x, carry, reset=reset, mask=mask)
    return carry, y + jnp.roll(y, -1, axis=1)


class _MixesRows(_Leaky):

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    carry, y = super().__call__(x, carry, reset=reset, mask=mask)
    return carry, y - y.mean(0)


class _AcceptsAnything(_Leaky):

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x = jnp.broadcast_to(x, x.shape[:-1] + (self.in_features,))
    return super().__call__(x[..., : self.in_features], carry, reset=reset)


class _GateDetached(_Leaky):
  """All forms of it agree, on wrong gradients."""

  def update(self, h, x, reset, mask):
    x = x.astype(h.dtype)
    gate = jax.nn.sigmoid(x)
    return super().update(
        h * jax.lax.stop_gradient(gate) / gate, x, reset, mask
    )


class _CountsCalls(_Leaky):
  """Remembers something on Python's side, which a compiled program does not."""

  calls = itertools.count()

  def step(self, carry, x, *, reset=None, mask=None):
    carry, y = super().step(carry, x, reset=reset, mask=mask)
    return carry, y * (1 + next(self.calls))


class _ForgetsAtBorders(_Leaky):
  """Every device starts from the carry, as if its segment were the first."""

  def __call__(self, x, carry=None, *, reset=None, mask=None):
    x, carry, _, reset = base.prepare(self, x, carry, reset, mask)

    def local(x, carry, reset, mask, *, segments):
      carry, y = super(_ForgetsAtBorders, self).__call__(
          x, carry, reset=reset, mask=mask
      )
      return carry if segments is None else segments.from_last(carry), y

    return mesh.run_aligned(
        local, x, (x, carry, reset, mask), ('btd', 'bd', 'bt', 'bt'),
        ('bd', 'btd'),
    )


class _AsksTheHost(_Leaky):

  def step(self, carry, x, *, reset=None, mask=None):
    carry, y = super().step(carry, x, reset=reset, mask=mask)
    return carry, jax.pure_callback(np.asarray, y, y)


class _SharesABuffer(_Leaky):

  def __init__(self, features=4):
    super().__init__(features)
    self.twin = nnx.Param(self.scale[...])


# The check that must notice; others may, too.
_BREACHES = {
    'reset': (_ResetByMultiplication, _ResetAfterwards),
    'mask': (_MaskIgnored, _CarryNotKept),
    'steps': (_OtherStep, _CarryUnused, _CarryDetached),
    'dtypes': (_CarryInBfloat16,),
    'causality': (_LooksAhead,),
    'batch': (_MixesRows,),
    'errors': (_AcceptsAnything,),
    'eager': (_CountsCalls,),
    'grad': (_GateDetached,),
    'export': (_AsksTheHost,),
    'donation': (_SharesABuffer,),
    'segments': (_ForgetsAtBorders,),
}


class CheckLayerTest(parameterized.TestCase):

  def test_a_correct_layer_passes(self):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      testing.check_layer(lambda rngs: _Leaky(), dtypes=['float32'])
    head, *rows = output.getvalue().splitlines()
    self.assertEqual(head.split(), ['check', 'input', 'promise'])
    self.assertEqual([row.split()[0] for row in rows], list(testing.CHECKS))

  @parameterized.parameters(
      (check, breach) for check, all_ in _BREACHES.items() for breach in all_
  )
  def test_a_broken_layer_fails(self, check, breach):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      with self.assertRaisesRegex(AssertionError, check):
        testing.check_layer(
            lambda rngs: breach(), dtypes=['float32'], checks=[check]
        )
    head, *rows = output.getvalue().splitlines()
    self.assertEqual(
        head.split(), ['check', 'input', 'what', 'error', 'tolerance']
    )
    for row in rows:
      self.assertEqual(row.split()[:2], [check, 'float32'])

  def test_the_table_lists_all_failures(self):
    class Broken(_Leaky):

      def step(self, carry, x, *, reset=None, mask=None):
        raise RuntimeError('No step today.')

    output = io.StringIO()
    with contextlib.redirect_stdout(output):
      with self.assertRaisesRegex(AssertionError, 'steps, lengths'):
        testing.check_layer(
            lambda rngs: Broken(), dtypes=['float32', 'bfloat16'],
            checks=['shapes', 'steps', 'lengths'],
        )
    self.assertIn('RuntimeError: No step today.', output.getvalue())
    self.assertIn('bfloat16', output.getvalue())

  def test_unknown_names_raise(self):
    make_layer = testing.LAYERS['elman']
    with self.assertRaisesRegex(ValueError, 'checks.*steps'):
      testing.check_layer(make_layer, checks=['speed'])
    with self.assertRaisesRegex(ValueError, 'dtypes.*float32'):
      testing.check_layer(make_layer, dtypes=['int8'])
    with self.assertRaisesRegex(ValueError, 'enable_x64'):
      testing.check_layer(make_layer, dtypes=['float64'])


class AssertCloseTest(parameterized.TestCase):

  def test_accepts_differences_within_the_tolerance(self):
    want = {'a': np.array([1.0, -200.0, np.nan]), 'b': np.arange(3)}
    got = {'a': np.float32([1.0, -200.001, np.nan]), 'b': np.arange(3)}
    testing.assert_close(got, want)
    testing.assert_close(jnp.asarray(want['a'], jnp.bfloat16), want['a'])

  @parameterized.named_parameters(
      ('value', np.float32([1, 2.001]), 'error 0.0005'),
      ('nan', np.float32([1, np.nan]), 'error inf'),
      ('infinity', np.float32([1, np.inf]), 'error inf'),
      ('shape', np.float32([[1, 2]]), r'\(1, 2\), want \(2,\)'),
      ('structure', [np.float32([1, 2])], 'PyTreeDef'),
  )
  def test_names_leaves_outside_the_tolerance(self, got, message):
    with self.assertRaisesRegex(AssertionError, message):
      testing.assert_close(got, np.float32([1, 2]))

  def test_the_given_dtype_sets_the_tolerance(self):
    got, want = jnp.bfloat16(1.0), np.float32(1.01)
    testing.assert_close(got, want)
    with self.assertRaises(AssertionError):
      testing.assert_close(got, want, 'float32')
    testing.assert_close(got, want, 'float32', tolerance=0.1)

  def test_integers_must_be_equal(self):
    with self.assertRaises(AssertionError):
      testing.assert_close(jnp.int32(1000001), jnp.int32(1000000))
