"""What ours is measured against, as one would write it without us."""

import jax
import jax.numpy as jnp
import numpy as np


def associative_scan(a, x):
  """`h_t = a_t h_{t-1} + x_t`: `[B, T, D], [B, T, D] -> [B, T, D]`."""
  combine = lambda l, r: (l[0] * r[0], r[0] * l[1] + r[1])
  return jax.lax.associative_scan(combine, (a, x), axis=1)[1]


def lax_scan(a, x):
  """The same, one step after the other."""

  def step(h, inputs):
    a_t, x_t = inputs
    h = a_t * h + x_t
    return h, h

  by_time = jnp.moveaxis(a, 1, 0), jnp.moveaxis(x, 1, 0)
  _, h = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), by_time)
  return jnp.moveaxis(h, 0, 1)


def decays(kind, rng, shape):
  """Returns decays `near 0`, `near 1` or `mixed`."""
  if kind == 'near 0':
    return rng.uniform(0, 1e-3, shape)
  if kind == 'near 1':
    return 1 - rng.uniform(1e-5, 1e-3, shape)
  return 1 / (1 + np.exp(-rng.normal(0, 4, shape)))


def operands(kind, dtype, length):
  """Returns `a` and `x` `[1, T, D]`, rounded to `dtype`."""
  rng = np.random.default_rng(0)
  shape = 1, length, 4
  a, x = decays(kind, rng, shape), rng.standard_normal(shape)
  if dtype == 'complex64':
    a = a * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
    x = x + 1j * rng.standard_normal(shape)
  elif dtype == 'bfloat16':
    # It has no number between 0.9961 and 1: decays are kept in float32.
    return jnp.asarray(a, jnp.float32), jnp.asarray(x, jnp.bfloat16)
  return jnp.asarray(a, dtype), jnp.asarray(x, dtype)


def exact(a, x):
  """The scan in double precision, one step after the other."""
  wide = np.complex128 if np.iscomplexobj(a) else np.float64
  a, x = np.asarray(a).astype(wide)[0], np.asarray(x).astype(wide)[0]
  h, state = np.empty_like(x), np.zeros_like(x[0])
  for t in range(len(x)):
    h[t] = state = a[t] * state + x[t]
  return h
