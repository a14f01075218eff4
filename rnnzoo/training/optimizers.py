"""Optax optimisers by name, with what recurrent parameters need.

The papers of this field train the parameters that set the recurrence with their
own learning rate and without weight decay. As usual, biases, scales of norms
and other vectors, also one vector for each head, have no weight decay either.
`optimizer.groups` makes other rules, see `groups.py`.

For parameters of any dtype, the sums of an optimiser are float32 at least: in
bfloat16 a sum stops growing once a term is less than 1/256 of it.
`optimizer.options` may ask for less by name (`mu_dtype` of `adam`).
"""

from collections.abc import Callable
import copy
import dataclasses
import inspect
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo.training import groups
from rnnzoo.training import state as state_lib

OPTIMIZERS = dict(
    adafactor=optax.adafactor,
    adam=optax.adam,
    adamw=optax.adamw,
    lamb=optax.lamb,
    lion=optax.lion,
    sgd=optax.sgd,
)


def _warmup(start, peak, warmup):
  return optax.linear_schedule(
      start if warmup else peak, peak, max(warmup, 1)
  )


# `schedule(start, peak, end, warmup_steps, total_steps)` is a function of the
# step. Without warm-up it starts at the peak.
SCHEDULES = dict(
    constant=lambda start, peak, end, warmup, total: _warmup(
        start, peak, warmup
    ),
    cosine=lambda start, peak, end, warmup, total: (
        optax.warmup_cosine_decay_schedule(
            start if warmup else peak, peak, warmup, max(total, warmup + 1), end
        )
    ),
    # Between them the logarithm of the rate is linear, up or down.
    exponential=lambda start, peak, end, warmup, total: optax.join_schedules(
        [
            _warmup(start, peak, warmup),
            optax.exponential_decay(
                peak, max(total - warmup, 1), end / peak if peak else 1.0
            ),
        ],
        [warmup],
    ),
    linear=lambda start, peak, end, warmup, total: optax.join_schedules(
        [
            _warmup(start, peak, warmup),
            optax.linear_schedule(peak, end, max(total - warmup, 1)),
        ],
        [warmup],
    ),
)

# The fields of the part `optimizer` of a config.
FIELDS = dict(
    name=fields.Field(
        str, choices=tuple(OPTIMIZERS), default='adamw',
        help='The optimiser, by its name in Optax.',
    ),
    learning_rate=fields.Field(
        float, low=0, default=1e-3,
        help='The highest learning rate of the schedule.',
    ),
    end_learning_rate=fields.Field(
        float, low=0, default=1e-4,
        help='The learning rate after total_steps.',
    ),
    start_learning_rate=fields.Field(
        float, low=0, default=0.0,
        help='The learning rate before the warm-up.',
    ),
    warmup_steps=fields.Field(
        int, low=0, default=100,
        help='The number of steps in which the learning rate goes from '
        'start_learning_rate to learning_rate.',
    ),
    schedule=fields.Field(
        str, choices=tuple(SCHEDULES), default='cosine',
        help='How the learning rate goes from learning_rate to '
        'end_learning_rate after the warm-up; it may rise, too.',
    ),
    weight_decay=fields.Field(
        float, low=0, default=0.1,
        help='The weight decay of all parameters but vectors and recurrent '
        'parameters.',
    ),
    recurrent_rate_factor=fields.Field(
        float, low=0, default=1.0,
        help='Multiplies the learning rate of recurrent parameters.',
    ),
    groups=fields.Field(
        dict, default={},
        help='Groups of parameters with a learning rate and a weight decay of '
        "their own, such as {'slow': {'parameters': ('B_*', 'norm'), "
        "'rate_factor': 0.25, 'decay': False}}; a group 'rest' is that of all "
        'others.',
    ),
    clip=fields.Field(
        float, low=0, hint='With 0 nothing is clipped.', default=1.0,
        help='The largest norm of all gradients together; 0 means no limit.',
    ),
    options=fields.Field(
        dict, default=dict(b2=0.99),
        help='More keyword arguments of the function in Optax.',
    ),
    freeze=fields.Field(
        tuple, default=(),
        help="Groups of parameters that are not trained, such as 'embed'.",
    ),
)
_MEAN = fields.Field(float, low=0, high=1, below_high=True)
_POSITIVE = fields.Field(float, low=0, above_low=True)
_SMALL = fields.Field(float, low=0, high=1)
_DTYPE = fields.Field(str, optional=True, choices=(
    'bfloat16', 'float16', 'float32', 'float64'
))
_BOOL = fields.Field(bool)
# The fields of `optimizer.options`: keyword arguments of optax's functions.
OPTIONS = dict(
    accumulator_dtype=_DTYPE,
    b1=_MEAN,
    b2=_MEAN,
    clipping_threshold=dataclasses.replace(_POSITIVE, optional=True),
    decay_offset=fields.Field(int, low=0),
    decay_rate=_MEAN,
    dtype_momentum=_DTYPE,
    eps=_SMALL,
    eps_root=_SMALL,
    factored=_BOOL,
    min_dim_size_to_factor=fields.Field(int, low=1),
    momentum=dataclasses.replace(_MEAN, optional=True),
    mu_dtype=_DTYPE,
    multiply_by_parameter_scale=_BOOL,
    nesterov=_BOOL,
    weight_decay_rate=fields.Field(float, low=0, optional=True),
)
# These arguments of optax have fields of their own.
_OWN = ('learning_rate', 'weight_decay', 'mask', 'weight_decay_mask')


def defaults() -> dict[str, Any]:
  """Returns the default of each field of the part `optimizer`."""
  return {name: copy.deepcopy(f.default) for name, f in FIELDS.items()}


class Optimizer(NamedTuple):
  """An `optax.GradientTransformation` that knows the frozen parameters.

  Attributes:
    init: Maps parameters to the state of the optimiser.
    update: `(gradients, state, parameters) -> (updates, state)`.
    frozen: A bool for each leaf: whether the parameter is frozen. The gradient
      of a frozen parameter has no influence on anything, its update is 0, and
      it has no state.
  """

  init: Callable[..., Any]
  update: Callable[..., Any]
  frozen: Any


def make_schedule(config, total_steps: int):
  """Returns the learning rate as a function of the number of updates made."""
  return SCHEDULES[config.schedule](
      config.start_learning_rate, config.learning_rate,
      config.end_learning_rate, config.warmup_steps, total_steps,
  )


def check(config):
  """Raises `UserValueError` if a value of the part `optimizer` is wrong."""
  for name, field in FIELDS.items():
    fields.check(f'optimizer.{name}', getattr(config, name), field)
  groups.check(config.groups)
  if config.schedule == 'exponential' and not (
      config.learning_rate and config.end_learning_rate
  ):
    raise errors.UserValueError(
        'optimizer.schedule=exponential needs a positive '
        'optimizer.learning_rate and optimizer.end_learning_rate, got '
        f'{config.learning_rate} and {config.end_learning_rate}.'
    )
  allowed = inspect.signature(OPTIMIZERS[config.name]).parameters
  for option, value in config.options.items():
    if option not in allowed or option in _OWN:
      raise errors.UserValueError(
          f'optimizer.options: optax.{config.name} has no option {option!r}.'
          f'{errors.suggest(option, allowed)}'
      )
    if option in OPTIONS:
      if 'dtype' in option:  # A name, or a dtype of NumPy or JAX.
        value = getattr(value, '__name__', value)
      fields.check(f'optimizer.options.{option}', value, OPTIONS[option])
  if config.weight_decay and 'weight_decay' not in allowed:
    raise errors.UserValueError(
        f'optimizer.weight_decay must be 0: optax.{config.name} has none.'
    )


def make_optimizer(
    config, total_steps: int, *, axes, recurrent
) -> Optimizer:
  """Builds the gradient transformation.

  Args:
    config: What `FIELDS` describes.
    total_steps: Length of the schedule.
    axes: Logical axis names of every parameter.
    recurrent: A bool for each parameter: whether it sets the recurrence.

  Returns:
    The optimiser.

  Raises:
    UserValueError: On a wrong value, an unknown option, or a group or prefix
      without a parameter.
  """
  check(config)
  make = OPTIMIZERS[config.name]
  allowed = inspect.signature(make).parameters
  options = dict(config.options)
  is_axes = lambda a: isinstance(a, tuple)
  decayed = jax.tree_util.tree_map_with_path(
      lambda path, a, r: not r and is_matrix(path, a),
      axes, recurrent, is_leaf=is_axes,
  )
  factors = jax.tree.map(
      lambda r: config.recurrent_rate_factor if r else 1.0, recurrent
  )
  decayed, factors = groups.override(config.groups, decayed, factors)
  if 'weight_decay' in allowed:
    options |= dict(weight_decay=config.weight_decay, mask=decayed)
  parts: list[optax.GradientTransformation] = [
      make(make_schedule(config, total_steps), **options)
  ]
  if config.clip:
    parts.insert(0, optax.clip_by_global_norm(config.clip))
  for factor in sorted(set(jax.tree.leaves(factors)) - {1}):
    chosen = jax.tree.map(lambda f, factor=factor: f == factor, factors)
    parts.append(optax.masked(optax.scale(factor), chosen))
  frozen = frozen_parameters(recurrent, tuple(config.freeze))
  return _in_float32(optax.chain(*parts), frozen)


def _in_float32(tx, frozen) -> Optimizer:
  """Runs `tx` in float32 at least, on the parameters that are not frozen."""
  trained = optax.masked(tx, jax.tree.map(lambda one: not one, frozen))

  # The wrapper of `masked` would change the names of arrays in checkpoints.
  unwrapped = operator.attrgetter('inner_state')

  def init(params):
    return unwrapped(trained.init(state_lib.at_least_float32(params)))

  def update(grads, state, params=None):
    updates, state = trained.update(
        state_lib.at_least_float32(grads),
        optax.MaskedState(state),
        state_lib.at_least_float32(params),
    )
    updates = jax.tree.map(
        lambda one, u: jnp.zeros_like(u) if one else u, frozen, updates
    )
    return updates, unwrapped(state)

  return Optimizer(init, update, frozen)


def is_matrix(path, axes):
  """Returns whether a parameter is a matrix: no number, no vector per head."""
  axes = [name for name in axes if name != 'layers']
  if axes[:1] == ['heads']:
    axes = axes[1:]
  return len(axes) > 1 and path[-1].key not in ('bias', 'scale')


def frozen_parameters(tree, prefixes):
  """Marks the leaves of `tree` whose dotted path starts with one of `prefixes`.

  Raises:
    UserValueError: If a prefix matches nothing.
  """
  unused = set(prefixes)

  def mark(path, _):
    name = '.'.join(str(key.key) for key in path)
    hits = [p for p in prefixes if name == p or name.startswith(p + '.')]
    unused.difference_update(hits)
    return bool(hits)

  marked = jax.tree_util.tree_map_with_path(mark, tree)
  if unused:
    raise errors.UserValueError(
        f'optimizer.freeze: no parameter starts with {sorted(unused)}; the '
        f'groups are {sorted(tree)}.'
    )
  return marked
