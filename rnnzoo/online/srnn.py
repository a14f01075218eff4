"""Online regression with a simple network: an interpretation."""

from typing import Any, NamedTuple

from flax import nnx
from flax.traverse_util import unflatten_dict
import jax
import jax.numpy as jnp
import optax
from rnnzoo import layers
from rnnzoo.online.rtrl import Tree
from rnnzoo.online.stack import Stack
from rnnzoo.training import state as state_lib


class SRNNState(NamedTuple):
  """The state of an `SRNN`: parameters, and the last tokens and targets.

  `carry` is the state before the first of these tokens. `inputs` is `[B, W, D]`
  and `targets` `[B, W, D_out]`. `seen` `[B, W]` is `True` for tokens that exist
  already.
  """

  params: Tree
  carry: tuple
  inputs: jax.Array
  targets: jax.Array
  seen: jax.Array


class SRNN:
  r"""Online regression with a simple RNN, with gradients in linear time.

  This is an interpretation. We had only the abstract of Vural et al. (2020),
  https://arxiv.org/abs/2005.08948, "Achieving Online Regression Performance of
  LSTMs with Simple RNNs". It describes a simple (Elman) network, trained online
  by a first-order method, at a cost linear in the number of parameters, with a
  bound on its regret. This class has these properties; it does not claim the
  numbers of the paper.

  .. math::
      h_t &= \tanh(W x_t + b + U h_{t-1}), \quad \hat y_t = C h_t + c \\
      L_t(\theta) &= \frac{1}{w} \sum_{i < w} | y_{t-i} - \hat y_{t-i} |^2 \\
      \theta &\leftarrow \Pi(\theta - \eta \nabla L_t(\theta))

  The loss is an average over a window of the last `w` tokens, computed with the
  current parameters from the state before the window. For losses that are not
  convex, the regret of such an average can be bounded (Hazan et al., 2017,
  https://arxiv.org/abs/1708.00075). :math:`\Pi` projects every row of U to the
  nearest row whose magnitudes sum to at most `bound` < 1. So the network
  forgets at a known rate, :math:`|h_t - h'_t| \le bound\, |h_{t-1} - h'_{t-1}|`
  in the largest channel, and the effect of tokens before the window is at most
  `bound**w`. A token costs `w` times as much as a step and its gradient.

  >>> import jax
  >>> import jax.numpy as jnp
  >>> learner = SRNN(1, 16)
  >>> wave = jnp.sin(0.3 * jnp.arange(601))[None, :, None]
  >>> state, predictions = learner.run(
  ...     learner.initialize(jax.random.key(0)), wave[:, :-1], wave[:, 1:]
  ... )
  >>> error = (predictions - wave[:, 1:]) ** 2
  >>> bool(error[:, :50].mean() > 0.03), bool(error[:, -50:].mean() < 0.01)
  (True, True)
  """

  def __init__(
      self,
      in_features: int,
      hidden_features: int,
      out_features: int = 1,
      *,
      window: int = 10,
      learning_rate: float = 0.1,
      bound: float = 0.95,
      dtype: jnp.dtype = jnp.float32,
  ):
    """Creates the learner.

    Args:
      in_features: Size `D` of an input.
      hidden_features: Size `H` of the state.
      out_features: Size of a target.
      window: Number `w` of tokens in the average.
      learning_rate: The learning rate.
      bound: Largest sum of magnitudes of a row of U.
      dtype: Dtype of parameters, inputs and states.

    Raises:
      ValueError: If `window` or `bound` is out of range.
    """
    if window < 1:
      raise ValueError(f'`window` must be at least 1, got {window}.')
    if not 0 < bound < 1:
      raise ValueError(f'`bound` must be between 0 and 1, got {bound}.')
    self._sizes = in_features, hidden_features, out_features
    self._window, self._rate, self._bound = window, learning_rate, bound
    self._dtype = dtype
    self._functional = state_lib.Functional(self._build)

  def initialize(self, key: jax.Array, batch_size: int = 1) -> SRNNState:
    """Returns the state before the first token of `batch_size` streams."""
    params, _ = self._functional.variables(self._build(nnx.Rngs(key)))
    window = lambda *sizes, dtype: jnp.zeros(
        (batch_size, self._window, *sizes), dtype
    )
    return SRNNState(
        params=self._projected(params),
        carry=self.merge(params).initialize_carry(batch_size, self._dtype),
        inputs=window(self._sizes[0], dtype=self._dtype),
        targets=window(self._sizes[2], dtype=self._dtype),
        seen=window(dtype=bool),
    )

  def merge(self, params: Tree) -> Stack:
    """Returns the network with these parameters."""
    return self._functional.merge(params, {}, rounded=False)

  def step(
      self, state: SRNNState, x: jax.Array, target: jax.Array
  ) -> tuple[SRNNState, jax.Array]:
    """Predicts, then learns. It is a pure function, for `jit` or `scan`.

    Args:
      state: The state after the previous token.
      x: The token `[B, D]`.
      target: The target, `[B, D_out]`, unknown to the prediction.

    Returns:
      `(state, prediction)`: the prediction `[B, D_out]` from before the update.
    """
    # The oldest token leaves the window: the current network reads it.
    carry, _ = self.merge(state.params).step(
        state.carry, state.inputs[:, 0], mask=state.seen[:, 0]
    )
    shift = lambda u, new: jnp.concatenate([u[:, 1:], new[:, None]], axis=1)
    inputs, targets = shift(state.inputs, x), shift(state.targets, target)
    seen = shift(state.seen, jnp.ones(x.shape[:1], bool))

    def smoothed(params):
      _, y = self.merge(params)(inputs, carry, mask=seen)
      errors = jnp.where(seen[..., None], y - targets, 0)
      return (errors**2).sum() / self._window, y[:, -1]

    gradient, prediction = jax.grad(smoothed, has_aux=True)(state.params)
    params = jax.tree.map(
        lambda p, g: p - self._rate * g, state.params, gradient
    )
    return (
        SRNNState(self._projected(params), carry, inputs, targets, seen),
        prediction,
    )

  def run(
      self, state: SRNNState, inputs: jax.Array, targets: jax.Array
  ) -> tuple[SRNNState, jax.Array]:
    """Runs `step` over `[B, T, D]`, and returns `[B, T, D_out]` predictions."""
    by_time = lambda u: jnp.moveaxis(u, 1, 0)
    state, predictions = jax.jit(lambda state, tokens: jax.lax.scan(
        lambda state, token: self.step(state, *token), state, tokens
    ))(state, (by_time(inputs), by_time(targets)))
    return state, by_time(predictions)

  def _build(self, rngs):
    read, hidden, out = self._sizes
    options: dict[str, Any] = dict(param_dtype=self._dtype, rngs=rngs)
    network = layers.Elman(read, hidden, **options)
    return Stack(network, nnx.Linear(hidden, out, **options))

  def _projected(self, params):
    flat = state_lib.by_path(params)
    key = ('parts', '0', 'hidden', 'kernel')  # [H, 1, H], into the last axis.
    project = lambda row: optax.projections.projection_l1_ball(row, self._bound)
    flat[key] = jax.vmap(project, -1, -1)(flat[key])
    return unflatten_dict(flat)
