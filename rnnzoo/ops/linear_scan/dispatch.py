"""Chooses a backend of the linear recurrence, and runs it on each device."""

import functools
import importlib
import importlib.util
from typing import NamedTuple

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import exact
from rnnzoo.ops import split_time
from rnnzoo.ops.linear_scan import backend as backend_lib
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import recurrence


class _Entry(NamedTuple):
  """When a backend is chosen that is not pinned.

  Attributes:
    platform: The platform of lowering for which it is chosen. `default` is any
      platform without a backend of its own. None means never.
    needs: The backend cannot run unless one of these packages is installed, and
      then it is not traced, which would only cost time.
  """

  platform: str | None = None
  needs: tuple[str, ...] = ()


# One line for each backend. The name is that of the module, which is imported
# when it is needed: the kernels take half a second. If several backends can run
# on a platform, the last one that is the fastest there is chosen.
_BACKENDS = {
    'reference': _Entry(),
    'associative': _Entry('default'),
    'sequential': _Entry('cpu'),
    'pallas_tpu': _Entry('tpu', needs=('libtpu',)),
    'pallas_gpu': _Entry('cuda', ('jax_cuda12_plugin', 'jax_cuda13_plugin')),
}

# The name of a backend, a key of `_BACKENDS`.
Implementation = str

_pinned = jax.make_user_context(None)


def implementation(name: Implementation):
  """Pins every scan traced inside `with implementation(name):` to one backend.

  The choice is part of the `jax.jit` cache key, so it cannot go stale.

  >>> import jax.numpy as jnp
  >>> from rnnzoo import ops
  >>> with ops.implementation('reference'):
  ...   h_last, h = ops.linear_scan(0.5, jnp.ones((1, 3, 1)))
  >>> h_last
  Array([[1.75]], dtype=float32)

  Args:
    name: `reference` (`lax.scan`), `associative` (`lax.associative_scan`),
      `sequential` (an in-place loop), `pallas_tpu` or `pallas_gpu` (kernels).
      The first two also allow `jax.jvp`.

  Returns:
    A context manager.

  Raises:
    ValueError: If there is no such backend.
  """
  if name not in _BACKENDS:
    raise ValueError(
        f'`name` must be one of {tuple(_BACKENDS)}, got {name!r}.'
    )
  return _pinned(name)


def pinned() -> Implementation | None:
  """Returns the name of the pinned backend, or None."""
  return _pinned.value


def portable() -> tuple[Implementation, ...]:
  """Returns the names of the backends that run on every machine."""
  return tuple(name for name, entry in _BACKENDS.items() if not entry.needs)


def is_differentiable(name: Implementation | None) -> bool:
  """Whether JAX differentiates this backend itself, in forward mode too."""
  return name is not None and _load(name).differentiable


def run(form, inputs, h0, reset, mask):
  """Runs a recurrence on what each device holds.

  Args:
    form: The `Recurrence`.
    inputs: See `backend.py`, as for all the rest.
    h0: `[B, D]`.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None.

  Returns:
    `(last, h)`.
  """

  def local(*operands, segments):
    *inputs, h0, reset, mask = operands
    inputs = tuple(inputs)
    if segments is not None:
      product, last = _on_backend(_summary, form, inputs, h0, reset, mask)
      h0 = split_time.entering_state(
          segments, product, last, reset, h0, form.reverse
      )
    last, h = _on_backend(_scan, form, inputs, h0, reset, mask)
    if segments is not None:
      last = segments.from_last(last, form.reverse)
    return last, h

  operands = *inputs, h0, reset, mask
  if is_differentiable(form.backend) and mesh.is_partly_manual():
    # JAX cannot lower the gradient of a shard_map inside another one. XLA's
    # partitioner can split these backends.
    return local(*operands, segments=None)
  return mesh.run_aligned(
      local, inputs[-1], operands, layouts(len(inputs)), ('bd', 'btd')
  )


def run_gradient(form, kept, h, h0, reset, mask, dlast, dh):
  """Runs the gradient of a recurrence on what each device holds.

  Args:
    form: The `Recurrence`.
    kept: Its inputs, without the last one of a linear gate.
    h: Its states `[B, T, D]`.
    h0: `[B, D]`.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None.
    dlast: The cotangent of `last` `[B, D]`.
    dh: The cotangent of `h` `[B, T, D]`.

  Returns:
    The gradients of the inputs, yet to be summed where an input was broadcast,
    and that of `h0`.
  """
  linear = form.gate is gates.linear

  def local(*operands, segments):
    *kept, h0, reset, mask, h, dh, dlast = operands
    kept = tuple(kept)
    if segments is not None:
      edge = h[:, 0 if form.reverse else -1].astype(h0.dtype)
      h0 = segments.from_neighbor(edge, h0, form.reverse)
      product, last = _on_backend(
          _summary, form.adjoint_of_inputs(), (*kept, dh), h0, reset, mask
      )
      dlast = split_time.entering_state(
          segments, product, last, reset, dlast, not form.reverse
      )
    inputs = (*kept, dh) if linear else kept
    dinputs, dh0 = _on_backend(
        _gradient, form, inputs, h0, reset, mask, h, dlast, dh
    )
    if segments is not None:
      dh0 = segments.from_last(dh0, not form.reverse)
    return *dinputs, dh0

  return mesh.run_aligned(
      local,
      dh,
      (*kept, h0, reset, mask, h, dh, dlast),
      (*layouts(len(kept)), 'btd', 'btd', 'bd'),
      ('btd',) * (len(kept) + linear) + ('bd',),
  )


def layouts(inputs: int) -> tuple[str, ...]:
  """The layouts of this many inputs, `h0`, `reset` and `mask` (`mesh.py`)."""
  return ('btd',) * inputs + ('bd', 'bt', 'bt')


def _on_backend(work, form, inputs, h0, reset, mask, *others):
  """Runs `_scan`, `_summary` or `_gradient` on the backend for a platform."""
  arguments = inputs, h0, reset, mask, *others
  on = lambda chosen: functools.partial(work, form, chosen)
  refuses = lambda chosen: chosen.supports(
      inputs, h0, reset, mask, gate=form.gate, decay_after=form.decay_after
  )
  if form.backend is not None:  # Exactly that one; never a fallback.
    chosen = _load(form.backend)
    reason = refuses(chosen)
    if reason is not None:
      raise NotImplementedError(f'{form.backend}: {reason}')
    return on(chosen)(*arguments)
  # Chosen at lowering, not by the device that is local while tracing.
  branches = {}
  for name, entry in _BACKENDS.items():
    if entry.platform is None or not _is_installed(entry.needs):
      continue
    chosen = _load(name)
    if chosen.is_fastest(inputs[-1].shape) and refuses(chosen) is None:
      branches[entry.platform] = on(chosen)
  return jax.lax.platform_dependent(*arguments, **branches)


def _scan(form, chosen, inputs, h0, reset, mask):
  options = dict(reverse=form.reverse, decay_after=form.decay_after)
  if form.backend is not None or not chosen.gates_first or (
      form.gate is gates.linear
  ):
    return chosen.scan(inputs, h0, reset, mask, gate=form.gate, **options)
  # All cores compute gates before a loop, and only one core inside it.
  a, x = gates.evaluate(
      form.gate, inputs, h0.dtype, reset, mask, form.decay_after
  )
  shape, dtype = inputs[-1].shape, inputs[-1].dtype
  last, h = chosen.scan(
      tuple(jnp.broadcast_to(u, shape) for u in (a, x)), h0, reset, None,
      gate=gates.linear, **options,
  )
  return last, h.astype(dtype)


def _summary(form, chosen, inputs, h0, reset, mask):
  del h0
  options = dict(
      gate=form.gate, reverse=form.reverse, decay_after=form.decay_after
  )
  if chosen.summary is not None:
    return chosen.summary(inputs, reset, mask, **options)
  like, dtype = inputs[-1], exact.accumulation_dtype(*inputs)
  zero = jnp.zeros_like(like[:, 0], dtype)
  last, _ = chosen.scan(inputs, zero, reset, mask, **options)
  a, _ = gates.evaluate(
      form.gate, inputs, dtype, reset, mask, form.decay_after
  )
  a = jnp.broadcast_to(a, like.shape)
  if reset is not None:
    # All of them, so that not even a gradient meets a NaN before the reset.
    a = jnp.where(reset.any(1)[:, None, None], 0, a)
  return a.prod(1), last


def _gradient(form, chosen, inputs, h0, reset, mask, h, dlast, dh):
  if chosen.gradient is not None:
    dinputs, dh0 = chosen.gradient(
        inputs, h, h0, reset, mask, dlast, dh,
        gate=form.gate, reverse=form.reverse,
    )
    return recurrence.like_each_other(inputs, dinputs, h0, dh), dh0
  # All cores compute the decays in one pass over memory, so the loop reads
  # them instead of computing them.
  if form.gate is gates.linear:
    kept, a = inputs[:-1], inputs[0]
  else:
    kept = inputs
    a, _ = gates.evaluate(form.gate, inputs, h0.dtype, reset, mask)
  dh0, dx = chosen.scan(
      (a, dh), dlast, reset, None,
      gate=gates.linear, reverse=not form.reverse, decay_after=True,
  )
  dinputs = recurrence.pull_back(form, kept, h, h0, reset, mask, dlast, dx)
  return recurrence.like_each_other(inputs, dinputs, h0, dh), dh0


@functools.cache
def _load(name: Implementation) -> backend_lib.Backend:
  return importlib.import_module(f'{__package__}.{name}').BACKEND


@functools.cache
def _is_installed(packages: tuple[str, ...]) -> bool:
  return not packages or any(map(importlib.util.find_spec, packages))
