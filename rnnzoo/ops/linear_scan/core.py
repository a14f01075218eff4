"""The one recurrence under `linear_scan` and `gated_scan`, and its gradient.

An implementation only has to run (`__init__.py` has its contract). The gradient
is written once, here, and is itself such a recurrence; a kernel may bring a
quicker form of it, all in one sweep.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib
import importlib.util
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from rnnzoo import mesh
from rnnzoo.ops import exact
from rnnzoo.ops import split_time
from rnnzoo.ops.linear_scan import gates
from rnnzoo.ops.linear_scan import reference
from rnnzoo.ops.linear_scan import xla

Implementation = Literal[
    'reference', 'associative', 'sequential', 'pallas_tpu', 'pallas_gpu'
]
# These two are differentiated by JAX itself, in forward mode too.
_PLAIN = ('reference', 'associative')

_context = jax.make_user_context(None)


def implementation(name: Implementation):
  """Pins every scan traced inside `with implementation(name):` to one form.

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
    ValueError: If there is no such implementation.
  """
  if name not in get_args(Implementation):
    raise ValueError(
        f'`name` must be one of {get_args(Implementation)}, got {name!r}.'
    )
  return _context(name)


class _Kernel(NamedTuple):
  """What an implementation brings; `__init__.py` has the contract."""

  scan: Callable
  summary: Callable = xla.summary
  gradient: Callable | None = None
  supports: Callable = lambda *_, **__: None


@functools.cache
def _kernel(name):
  if name.startswith('pallas'):
    # Not at the top: half a second for those who have no such device.
    module = importlib.import_module(f'{__package__}.{name}')
    return _Kernel(
        module.scan, module.summary, module.gradient, module.supports
    )
  return dict(
      reference=_Kernel(reference.scan),
      associative=_Kernel(xla.associative),
      sequential=_Kernel(xla.sequential),
  )[name]


@dataclasses.dataclass(frozen=True)
class _Form:
  """Which recurrence, and by which implementation."""

  name: Implementation | None
  gate: Callable
  reverse: bool
  decay_after: bool = False

  def adjoint(self, gate):
    after = not self.decay_after
    return _Form(self.name, gate, not self.reverse, after)


def recurrence(gate, inputs, h0, reset=None, mask=None, *, reverse=False):
  """Runs `h_t = a_t * h_{t-1} + x_t` where `a_t, x_t = gate(*inputs_t)`.

  Args:
    gate: A function `(start, *inputs) -> (a, x)`, the same object each time.
    inputs: Arrays `[B|1, T|1, D|1]`, the last one `[B, T, D]`.
    h0: `[B, D]` in the dtype of states.
    reset: Booleans `[B, T]` or None.
    mask: Booleans `[B, T]` or None; where False, `a = 1` and `x = 0`.
    reverse: Whether time runs from `T - 1` down to `0`.

  Returns:
    `(h_last, h)`, the latter in the dtype of the last input.

  Raises:
    NotImplementedError: If the pinned implementation cannot take these.
    TypeError: On forward-mode differentiation of a hand-written gradient.
  """
  form = _Form(_context.value, gate, reverse)
  if mask is not None and reset is not None:
    reset = reset & mask
  # Outside the hand-written rule, so that it need not undo this.
  *inputs, h0, reset, mask = mesh.align(
      inputs[-1], (*inputs, h0, reset, mask), _layouts(len(inputs))
  )
  operands = tuple(inputs), h0, reset, mask
  if form.name in _PLAIN:
    return _run(form, *operands)
  try:
    return _scan(form, *operands)
  except TypeError as error:
    if 'forward-mode' not in str(error):
      raise
    raise TypeError(
        'Scans have a hand-written reverse-mode gradient; for jax.jvp, jacfwd '
        "or hessian trace them inside `with rnnzoo.ops.implementation("
        "'associative')` (or 'reference')."
    ) from error


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(form, inputs, h0, reset, mask):
  return _run(form, inputs, h0, reset, mask)


def _forward(form, inputs, h0, reset, mask):
  last, h = _scan(form, inputs, h0, reset, mask)
  # The adjoint of a linear step does not look at its input.
  kept = inputs[:-1] if form.gate is gates.linear else inputs
  return (last, h), (kept, h, h0, reset, mask)


def _backward(form, residuals, cotangents):
  kept, h, h0, reset, mask = residuals
  dinputs, dh0 = _gradient(form, kept, h, h0, reset, mask, *cotangents)
  return dinputs, dh0, None, None


_scan.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(form, kept, h, h0, reset, mask, dlast, dh):
  """Returns the gradients of the inputs, in their shapes, and of `h0`."""
  if form.decay_after:
    return _gradient_by_scan(form, kept, h, h0, reset, mask, dlast, dh)
  *dinputs, dh0 = _run_gradient(form, kept, h, h0, reset, mask, dlast, dh)
  return _like(kept, dinputs, dh), dh0


def _gradient_forward(form, *operands):
  return _gradient(form, *operands), operands


def _gradient_backward(form, operands, cotangents):
  # The same in operations that have gradients themselves.
  kept, h, h0, reset, mask, dlast, dh = operands

  def again(kept, h, h0, dlast, dh):
    return _gradient_by_scan(form, kept, h, h0, reset, mask, dlast, dh)

  _, vjp = jax.vjp(again, kept, h, h0, dlast, dh)
  dkept, dh, dh0, ddlast, ddh = vjp(cotangents)
  return dkept, dh, dh0, None, None, ddlast, ddh


_gradient.defvjp(_gradient_forward, _gradient_backward)


def _gradient_by_scan(form, kept, h, h0, reset, mask, dlast, dh):
  if form.gate is gates.linear and mask is None:
    a = kept[0]
  else:
    a, _ = gates.evaluate(form.gate, kept, h0.dtype, reset, mask)
  dh0, dx = _scan(form.adjoint(gates.linear), (a, dh), dlast, reset, None)
  dinputs = _pull_back(form, kept, h, h0, reset, mask, dlast, dx)
  return _like(kept, dinputs, dh), dh0


def _pull_back(form, kept, h, h0, reset, mask, dlast, dx):
  """From the adjoint states `dx` `[B, T, D]` to gradients of the inputs."""
  # a_t met the state on its left, and with it the cotangent on its right.
  dtype = h0.dtype
  if form.decay_after:
    left, right = h.astype(dtype), _beside(dx, dlast, reset, form.reverse)
  else:
    left = _beside(h, h0, reset, not form.reverse)
    right = dx.astype(dtype)
  return gates.pull_back(form.gate, kept, left * right, dx, reset, mask)


def _beside(u, edge, reset, from_the_left):
  """`u_{t-1}`, or `u_{t+1}`; `edge` fills the gap, and 0 is beyond a reset."""
  u = split_time.shift(
      u.astype(edge.dtype), edge, later=from_the_left
  )
  # Before anything multiplies it: 0 * NaN would cross into another sequence.
  return u if reset is None else jnp.where(reset[..., None], 0, u)


def _like(kept, dinputs, dh):
  """Brings gradients to the shapes and dtypes of the inputs."""

  def one(u, du):
    if not jnp.issubdtype(u.dtype, jnp.complexfloating):
      du = du.real
    over = tuple(i for i in range(3) if u.shape[i] != du.shape[i])
    return du.sum(over, keepdims=True).astype(u.dtype)

  # The input that was not kept has the shape and the dtype of `dh`.
  return tuple(map(one, (*kept, dh)[: len(dinputs)], dinputs))


# The rest runs a form: over the mesh, then on each device's part of it.


def _layouts(inputs):
  """Layouts of `inputs` inputs, `h0`, `reset` and `mask`; see `mesh.py`."""
  return ('btd',) * inputs + ('bd', 'bt', 'bt')


def _run(form, inputs, h0, reset, mask):
  """Returns `(last, h)`."""

  def local(*operands, segments):
    *inputs, h0, reset, mask = operands
    operands = tuple(inputs), reset, mask
    if segments is not None:
      product, last = _dispatch(form, 'summary', operands, h0)
      h0 = split_time.entering_state(
          segments, product, last, reset, h0, form.reverse
      )
    last, h = _dispatch(form, 'scan', operands, h0)
    if segments is not None:
      last = segments.from_last(last, form.reverse)
    return last, h

  operands = *inputs, h0, reset, mask
  if form.name in _PLAIN and mesh.is_partly_manual():
    # JAX cannot lower the gradient of a shard_map inside another one, and
    # XLA's partitioner knows how to split these two.
    return local(*operands, segments=None)
  return mesh.run_aligned(
      local, inputs[-1], operands, _layouts(len(inputs)), ('bd', 'btd')
  )


def _run_gradient(form, kept, h, h0, reset, mask, dlast, dh):
  """Returns the gradients of the inputs, yet to be summed, and `dh0`."""

  def local(*operands, segments):
    *kept, h0, reset, mask, h, dh, dlast = operands
    kept = tuple(kept)
    if segments is not None:
      edge = h[:, 0 if form.reverse else -1].astype(h0.dtype)
      h0 = segments.from_neighbor(edge, h0, form.reverse)
      product, last = _dispatch(
          _adjoint(form), 'summary', ((*kept, dh), reset, mask), h0
      )
      dlast = split_time.entering_state(
          segments, product, last, reset, dlast, not form.reverse
      )
    inputs = (*kept, dh) if form.gate is gates.linear else kept
    dinputs, dh0 = _dispatch(
        form, 'gradient', (inputs, reset, mask), h0, h, dlast, dh
    )
    if segments is not None:
      dh0 = segments.from_last(dh0, not form.reverse)
    return *dinputs, dh0

  layouts = (*_layouts(len(kept)), 'btd', 'btd', 'bd')
  count = len(kept) + (form.gate is gates.linear)
  return mesh.run_aligned(
      local,
      dh,
      (*kept, h0, reset, mask, h, dh, dlast),
      layouts,
      ('btd',) * count + ('bd',),
  )


def _adjoint(form):
  """The recurrence back, whose inputs are those kept and then `dh`."""
  if form.gate is gates.linear:
    return form.adjoint(gates.linear)
  return form.adjoint(gates.adjoint(form.gate))


def _dispatch(form, what, operands, h0, *others):
  """Runs a kernel's `scan`, `summary` or `gradient` on one device's arrays."""
  inputs, reset, mask = operands
  options = dict(gate=form.gate, reverse=form.reverse)

  def runs(name):
    kernel = _kernel(name)
    # All cores compute gates in front of a loop, and only one inside it.
    gates_first = (
        name == 'sequential' and form.name is None
        and form.gate is not gates.linear
    )

    def run(inputs, h0, reset, mask, *others):
      if what == 'scan' and gates_first:
        a, x = gates.evaluate(
            form.gate, inputs, h0.dtype, reset, mask, form.decay_after
        )
        shape, dtype = inputs[-1].shape, inputs[-1].dtype
        last, h = kernel.scan(
            tuple(jnp.broadcast_to(u, shape) for u in (a, x)), h0, reset, None,
            gate=gates.linear, reverse=form.reverse,
            decay_after=form.decay_after,
        )
        return last, h.astype(dtype)
      if what == 'scan':
        return kernel.scan(
            inputs, h0, reset, mask, **options, decay_after=form.decay_after
        )
      if what == 'summary':
        # A loop over time has a gradient that is quadratic in it.
        summary = kernel.summary
        if name in _PLAIN:
          summary = functools.partial(_summary_by_scan, kernel.scan)
        return summary(
            inputs, reset, mask, **options, decay_after=form.decay_after
        )
      h, dlast, dh = others
      if kernel.gradient is not None:
        dinputs, dh0 = kernel.gradient(
            inputs, h, h0, reset, mask, dlast, dh, **options
        )
        return _alike(inputs, dinputs, h0, dh), dh0
      # The decays in one pass over memory, by all cores: what the loop reads
      # it need not compute.
      if form.gate is gates.linear:
        kept, a = inputs[:-1], inputs[0]
      else:
        kept = inputs
        a, _ = gates.evaluate(form.gate, inputs, h0.dtype, reset, mask)
      dh0, dx = kernel.scan(
          (a, dh), dlast, reset, None,
          gate=gates.linear, reverse=not form.reverse, decay_after=True,
      )
      dinputs = _pull_back(form, kept, h, h0, reset, mask, dlast, dx)
      return _alike(inputs, dinputs, h0, dh), dh0

    return run

  refuses = lambda name: _kernel(name).supports(
      inputs, h0, reset, mask, gate=form.gate, decay_after=form.decay_after
  )
  arguments = (inputs, h0, reset, mask, *others)
  if form.name is not None:  # Exactly that one; never a fallback.
    reason = refuses(form.name)
    if reason is not None:
      raise NotImplementedError(f'{form.name}: {reason}')
    return runs(form.name)(*arguments)
  # Chosen at lowering, not by whichever device is local while tracing.
  branches = dict(cpu=runs('sequential'), default=runs('associative'))
  if _can_compile_for_tpu() and refuses('pallas_tpu') is None:
    branches['tpu'] = runs('pallas_tpu')
  if _is_quickest_on_gpu(inputs[-1].shape) and refuses('pallas_gpu') is None:
    branches['cuda'] = runs('pallas_gpu')
  return jax.lax.platform_dependent(*arguments, **branches)


def _alike(inputs, dinputs, h0, dh):
  """Brings the gradients of all kernels to the same shapes and dtypes.

  Kernels sum over the time and the features that an input is broadcast along,
  or leave it to others. Over rows nobody sums: other devices have some of them.
  """

  def one(u, du):
    dtype = h0.dtype
    if not jnp.issubdtype(u.dtype, jnp.complexfloating):
      du, dtype = du.real, h0.real.dtype
    over = tuple(i for i in (1, 2) if u.shape[i] == 1)
    du = du.sum(over, keepdims=True)
    # A part of a sum keeps its digits.
    return du.astype(u.dtype if u.shape == dh.shape else dtype)

  return tuple(map(one, inputs, dinputs))


@functools.cache
def _can_compile_for_tpu():
  # Without it a program can at most be exported, and then by pinning; tracing a
  # kernel that nobody can run would cost everybody time.
  return importlib.util.find_spec('libtpu') is not None


def _summary_by_scan(
    scan, inputs, reset, mask, *, gate, reverse, decay_after
):
  """`summary` of an implementation that has none: see `__init__.py`."""
  like, dtype = inputs[-1], exact.accumulation_dtype(*inputs)
  zero = jnp.zeros_like(like[:, 0], dtype)
  last, _ = scan(
      inputs, zero, reset, mask,
      gate=gate, reverse=reverse, decay_after=decay_after,
  )
  a, _ = gates.evaluate(gate, inputs, dtype, reset, mask, decay_after)
  a = jnp.broadcast_to(a, like.shape)
  if reset is not None:
    # All of them, so that not even a gradient meets a NaN before the reset.
    a = jnp.where(reset.any(1)[:, None, None], 0, a)
  return a.prod(1), last


def _is_quickest_on_gpu(shape):
  """Whether the kernel was measured to win on the GPU that is here."""
  kind = _gpu_kind()
  if kind is None:
    return False
  module = importlib.import_module(f'{__package__}.pallas_gpu')
  return module.wins(kind, *shape)


@functools.cache
def _gpu_kind():
  plugins = 'jax_cuda12_plugin', 'jax_cuda13_plugin'
  if not any(map(importlib.util.find_spec, plugins)):
    return None
  if jax.default_backend() != 'gpu':
    return None
  return jax.devices()[0].device_kind
