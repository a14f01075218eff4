"""The gates of HGRN (Qin et al., 2023), https://arxiv.org/abs/2311.04823."""

import jax
import jax.numpy as jnp


def log_decay_gate(start, log_a, x):
  """`a = exp(log_a)`, `x = x`: a recurrence given by the log of its decay.

  A gate of `gated_scan`; so stored and trained, `a` keeps its digits near 0.

  >>> import jax.numpy as jnp
  >>> from rnnzoo import ops
  >>> inputs = jnp.full((1, 3, 1), jnp.log(.5)), jnp.ones((1, 3, 1))
  >>> ops.gated_scan(log_decay_gate, inputs)[1][0, :, 0]
  Array([1.  , 1.5 , 1.75], dtype=float32)
  """
  del start
  return jnp.exp(log_a), x


def hgrn_gate(start, bound, forget, v):
  """`a = bound + (1 - bound) sigmoid(forget)`, `x = (1 - a) silu(v)`.

  A gate of `gated_scan`: the decay does not fall below `bound`, in [0, 1).

  >>> import jax.numpy as jnp
  >>> from rnnzoo import ops
  >>> bound, zero, large = jnp.float32(0.5), jnp.zeros((1, 2, 1)), 40.
  >>> ops.gated_scan(hgrn_gate, (bound, zero, zero + large))[1][0, :, 0]
  Array([10. , 17.5], dtype=float32)
  """
  del start
  # What is let in, and 1 less that: rounded apart they would not sum to one.
  z = (1 - bound) * jax.nn.sigmoid(-forget)
  return 1 - z, z * jax.nn.silu(v)
