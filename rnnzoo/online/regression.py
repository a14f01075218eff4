"""Online regression: learners by name, each run once over a stream.

A learner predicts each target before it sees it, and learns from it then. The
names are

* a diagonal layer such as `lru`: real-time recurrent learning, exact;
* any layer and a number such as `lstm_10`: back-propagation through the last 10
  steps;
* `srnn`: `online.SRNN`;
* `linear_N`: recursive least squares on the last `N` inputs.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import layers as zoo
from rnnzoo.online import by_name
from rnnzoo.online import recursive_least_squares
from rnnzoo.online import rtrl
from rnnzoo.online import srnn
from rnnzoo.online import streams
from rnnzoo.online.stack import Stack
from rnnzoo.training import state as state_lib

# The fields of a config, but those of the stream.
FIELDS = dict(
    seed=fields.Field(
        int, low=0, high=2**31 - 1, default=0,
        help='The first seed: of the initial parameters, and of a generated '
        'stream.',
    ),
    num_seeds=fields.Field(
        int, low=1, default=3, help='The number of seeds, one after another.'
    ),
    learners=fields.Field(
        tuple, default=('srnn', 'lru', 'min_gru', 'lstm_1', 'lstm_10'),
        help='The learners: srnn; a diagonal layer such as lru for real-time '
        'recurrent learning; lstm_10 for a layer and the steps of truncated '
        'back-propagation; linear_5 for least squares on the last 5 inputs.',
    ),
    features=fields.Field(
        int, low=1, high=2**16, default=16,
        help='The number of features of a network.',
    ),
    learning_rate=fields.Field(
        float, low=0, above_low=True, default=0.01,
        help='That of Adam, for all networks but that of srnn.',
    ),
    srnn_learning_rate=fields.Field(
        float, low=0, above_low=True, default=0.1,
        help='That of srnn, whose method is gradient descent.',
    ),
    srnn_window=fields.Field(
        int, low=1, default=10,
        help='The number of tokens whose losses srnn averages.',
    ),
    forgetting=fields.Field(
        float, low=0, above_low=True, high=1, default=0.998,
        help='The weight of the errors of one step earlier, for linear.',
    ),
)


class Learner(NamedTuple):
  """A learner of a stream, as pure functions.

  Attributes:
    initialize: Maps a seed to what the run starts from.
    run: Maps this, inputs `[1, T, 1]` and targets `[1, T, 1]` to the squared
      error of each step `[T]`, made before the step is learned from.
    parameters: How many it has.
  """

  initialize: Callable[[int], Any]
  run: Callable[[Any, jax.Array, jax.Array], jax.Array]
  parameters: int


class Result(NamedTuple):
  """What a learner reached on a stream.

  Attributes:
    errors: The squared error of each step `[T]`, in variances of the targets.
    seconds: The time that the processors worked on the whole stream,
      compilation apart.
    parameters: How many the learner has.
  """

  errors: np.ndarray
  seconds: float
  parameters: int


def make(name: str, config: Any) -> Learner:
  """Returns a learner.

  >>> import types
  >>> config = types.SimpleNamespace(**{
  ...     name: field.default for name, field in FIELDS.items()
  ... })
  >>> learner = make('linear_2', config)
  >>> learner.run(None, jnp.ones((1, 5, 1)), jnp.ones((1, 5, 1))).shape
  (5,)

  Args:
    name: See above.
    config: Has the fields in `FIELDS`.

  Raises:
    UserValueError: If there is no such learner.
  """
  _check_names([name])
  layer, steps = by_name.split(name)
  if layer == 'linear':
    return Learner(
        lambda seed: None,
        lambda _, x, y: _squares(recursive_least_squares.least_squares(
            x, y, lags=steps, forgetting=config.forgetting
        ), y),
        steps + 1,
    )
  if layer == 'srnn':
    network = srnn.SRNN(
        1, config.features, window=config.srnn_window,
        learning_rate=config.srnn_learning_rate,
    )
    first = lambda seed: network.initialize(jax.random.key(seed))
    return Learner(
        first,
        lambda start, x, y: _squares(network.run(start, x, y)[1], y),
        state_lib.count_parameters(first(0).params),
    )
  build = lambda rngs: _network(layer, config.features, rngs)
  loss_fn = lambda y, target: ((y - target) ** 2).sum()
  learner = by_name.make(name, build(nnx.Rngs(0)), loss_fn, (1,))
  functional = state_lib.Functional(build)
  tx = optax.adam(config.learning_rate)
  return Learner(
      lambda seed: functional.variables(build(nnx.Rngs(seed)))[0],
      lambda params, x, y: rtrl.learn(learner, tx, params, x, y)[1],
      state_lib.count_parameters(learner.params),
  )


def run(
    learner: Learner, stream: streams.Stream, seed: int, programs: dict
) -> Result:
  """Runs a learner once over a stream.

  Args:
    learner: The learner.
    stream: The stream.
    seed: That of the initial parameters.
    programs: Holds the compiled program of this learner by the length of the
      stream, from one call to the next.

  Raises:
    UserError: If an error is not finite.
  """
  x, y = (
      jnp.asarray(u[None], jnp.float32) for u in (stream.inputs, stream.targets)
  )
  start = learner.initialize(seed)
  if x.shape not in programs:
    programs[x.shape] = jax.jit(learner.run).lower(start, x, y).compile()
  begin = time.process_time()
  found = jax.block_until_ready(programs[x.shape](start, x, y))
  seconds = time.process_time() - begin
  found = np.asarray(found, np.float64)
  if not np.isfinite(found).all():
    raise errors.UserError(
        f'The error is not finite at step {int(np.argmin(np.isfinite(found)))}.'
        ' Try a smaller learning_rate or srnn_learning_rate, or for linear a '
        'forgetting closer to 1.'
    )
  return Result(found, seconds, learner.parameters)


def check(config: Any) -> None:
  """Raises `UserValueError` if a field is wrong or a learner unknown."""
  for name, field in FIELDS.items():
    fields.check(name, config[name], field)
  for name, field in streams.FIELDS.items():
    fields.check(f'stream.{name}', config['stream'][name], field)
  _check_names(config['learners'])


def _check_names(names):
  by_name.check(
      names, dict(srnn=False, linear=True), 'srnn, lru, lstm_10 and linear_5'
  )


def _network(layer: str, features: int, rngs: nnx.Rngs) -> Stack:
  """A map to the features, the layer, and a map to one number."""
  make: Any = zoo.LAYERS[layer]
  inner = make(features, rngs=rngs)
  return Stack(
      nnx.Linear(1, features, rngs=rngs), inner,
      nnx.Linear(inner.out_features, 1, rngs=rngs),
  )


def _squares(predictions, targets):
  return ((predictions - targets) ** 2).sum((0, 2))
