"""The point process: events so far in, the density of the next event out."""

import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo.layers import base
from rnnzoo.layers import checking
from rnnzoo.layers import common
from rnnzoo.models import blocks
from rnnzoo.models import inputs as inputs_lib
from rnnzoo.models.backbone import Backbone
from rnnzoo.models.building import Layers
from rnnzoo.models.config import ModelConfig

# A gap is also read as `exp(-gap / scale)` of so many scales, which cover two
# deviations of its logarithm on both sides of the mean.
_SCALES = 8
# Of the standardised logarithm of a gap, which is not finite at 0.
_LIMIT = 10.0
# The smallest deviation, rate and speed of decay.
_SMALL = 1e-3


class PointProcess(nnx.Module):
  """Describes the time and the type of the next event, after every event.

  With the time since the last event, `gap`, and its type it reads one event
  after the other, as a language model reads tokens: all at once in training, or
  one by one with `step`. Its outputs are numbers that `log_density` and
  `log_survival` turn into exact log-likelihoods of any next event. There are
  two forms (`config.event_density`):

  * `mixture`: the density of the gap is a mixture of log-normal densities, as
    in "Intensity-free learning of temporal point processes" (Shchur et al.
    2020, https://arxiv.org/abs/1909.12127). Here the probabilities of the types
    depend on the gap, too.
  * `intensity`: the rate of events of type `k`, `s` after the last event, is a
    mean of `start * exp(-decay * s) + limit * (1 - exp(-decay * s))`, so its
    integral has a closed form.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> config = ModelConfig.tiny().replace(vocab_size=4)   # Three types.
  >>> model = PointProcess(config, rngs=nnx.Rngs(0))
  >>> types = jnp.array([[3, 0, 2]])                      # [B, T]
  >>> gaps = jnp.array([[0.0, 0.5, 0.1]])
  >>> carry, outputs = model(types, gaps)                 # [B, T, N]
  >>> model.log_density(outputs, gaps).shape              # [B, T, K]
  (1, 3, 3)
  >>> carry, output = model.step(carry, types[:, 0], gaps[:, 0])
  >>> float(model.log_survival(output, jnp.zeros(1))[0])
  0.0

  Attributes:
    config: The `ModelConfig`. `vocab_size` is `K + 1`: the types, and the start
      of a window.
    embed: The embeddings of the types.
    encoder: The linear map of what is known of a gap.
    backbone: The blocks.
    norm: The norm after the blocks.
    head: The linear map to the outputs.
    type_gap: With `mixture`, the linear map of a gap that is added to a part of
      the outputs, and
    type_head: the linear map from there to the types.
  """

  causal = True

  def __init__(
      self, config: ModelConfig, layers: Layers | None = None, *,
      rngs: nnx.Rngs,
  ):
    """Creates the model.

    Args:
      config: What to build. `vocab_size` must be set.
      layers: More layers by name, in addition to those of the zoo.
      rngs: The source of the initial parameters.

    Raises:
      UserValueError: If no point process can be built from the config.
    """
    config.check_dtypes()
    if config.vocab_size < 2:
      raise errors.UserValueError(
          'model.vocab_size must be the number of types and 1, so at least 2, '
          f'got {config.vocab_size}.'
      )
    self.config = config
    self.embed = inputs_lib.make_embedding(config, rngs)
    known = self._known(jnp.ones(())).size
    self.encoder = blocks.make_map(config, known, config.features, rngs)
    self.embed_norm = (
        blocks.make_norm(config, rngs) if config.embed_norm else None
    )
    self.backbone = Backbone(config, layers, rngs=rngs)
    if not all(stack.causal for stack in self.backbone.stacks):
      raise errors.UserValueError(
          'model.layer must be causal and model.bidirectional False in a point '
          'process, which predicts the next event.'
      )
    self.norm = blocks.make_final_norm(config, rngs)
    kinds, components = config.vocab_size - 1, config.components
    if config.event_density == 'mixture':
      self._sizes = (components,) * 3 + (config.features,)
      self.type_gap = blocks.make_map(config, known, config.features, rngs)
      self.type_head = blocks.make_map(config, config.features, kinds, rngs)
    else:
      self._sizes = kinds, kinds * components, kinds * components
    self.head = blocks.make_map(
        config, config.features, sum(self._sizes), rngs
    )

  def initialize_carry(self, batch_size: int, dtype: Any = None) -> base.Carry:
    """Returns the carry before the first event, see `Backbone`."""
    return self.backbone.initialize_carry(batch_size, dtype)

  def __call__(
      self,
      types: Any,
      gaps: Any,
      carry: base.Carry = None,
      *,
      reset: Any = None,
      mask: Any = None,
      train: bool = False,
      key: jax.Array | None = None,
  ) -> tuple[base.Carry, jax.Array]:
    """Reads whole sequences.

    Args:
      types: The types `[B, T]`, from 0; `vocab_size - 1` for the start of a
        window without an event.
      gaps: The time since the event before, `[B, T]`, floating.
      carry: The state after earlier events; `initialize_carry` if `None`.
      reset: Booleans `[B, T]`, `True` on the first event of each sequence.
      mask: Booleans `[B, T]`, `False` on events to skip.
      train: Whether batch norms use and update the statistics of the batch.
      key: The PRNG key of dropout; `None` means no dropout.

    Returns:
      `(carry, outputs)`: `[B, T, N]`, float32 or wider, 0 on events that are
      skipped.

    Raises:
      ValueError: If a shape or a dtype is wrong, or there is no such type.
    """
    x, reset, mask = self._encode(types, gaps, reset, mask, 2)
    key, embed_key = (None, None) if key is None else jax.random.split(key)
    x = inputs_lib.prepare(
        self.config, x, self.embed_norm, mask, train=train, key=embed_key
    )
    carry, x = self.backbone(
        x, carry, reset=reset, mask=mask, train=train, key=key
    )
    x = self.norm(base.masked(x, mask), mask=mask, train=train)
    return carry, self._finish(x, mask)

  def step(
      self,
      carry: base.Carry,
      types: Any,
      gaps: Any,
      *,
      reset: Any = None,
      mask: Any = None,
  ) -> tuple[base.Carry, jax.Array]:
    """Reads one event.

    Args:
      carry: The state after earlier events; `initialize_carry` if `None`.
      types: The types `[B]`.
      gaps: The time since the event before, `[B]`.
      reset: Booleans `[B]`, `True` where the event starts a new sequence.
      mask: Booleans `[B]`, `False` on events to skip.

    Returns:
      `(carry, outputs)`: `[B, N]`, as of `__call__`.

    Raises:
      ValueError: If a shape or a dtype is wrong, or there is no such type.
    """
    x, reset, mask = self._encode(types, gaps, reset, mask, 1)
    x = inputs_lib.prepare(self.config, x, self.embed_norm, mask)
    carry, x = self.backbone.step(carry, x, reset=reset, mask=mask)
    x = self.norm(base.masked(x, mask), mask=mask)
    return carry, self._finish(x, mask)

  def log_density(self, outputs: jax.Array, gaps: jax.Array) -> jax.Array:
    """Returns how probable each type is as the next event, at a given time.

    The sum of `exp` over the types and the integral over all gaps are 1, or
    less if with `intensity` there may be no next event.

    Args:
      outputs: What `__call__` or `step` returned, `[..., N]`.
      gaps: The time from the last event to the next one, `[...]`, above 0.

    Returns:
      The logarithm of the density of time and type, `[..., K]`, in nats.
    """
    if self.config.event_density == 'intensity':
      rates, expected = self._intensity(outputs, gaps)
      return jnp.log(rates) - expected[..., None]
    weights, z, deviations, types = self._mixture(outputs, gaps)
    of_gap = jax.nn.logsumexp(
        weights + jax.scipy.stats.norm.logpdf(z) - jnp.log(deviations), axis=-1
    )
    # From the density of the standardised logarithm to that of the gap.
    of_gap -= jnp.log(_positive(gaps)) + math.log(self.config.gap_deviation)
    known = self._known(gaps).astype(types.dtype)
    hidden = jax.nn.gelu(types + common.project(self.type_gap, known))
    logits = common.project(self.type_head, hidden, of_gap.dtype)
    return of_gap[..., None] + jax.nn.log_softmax(logits)

  def log_survival(self, outputs: jax.Array, gaps: jax.Array) -> jax.Array:
    """Returns how probable it is that there is no event for some time.

    Args:
      outputs: What `__call__` or `step` returned, `[..., N]`.
      gaps: The time since the last event, `[...]`.

    Returns:
      The logarithm of the probability, `[...]`, in nats.
    """
    if self.config.event_density == 'intensity':
      return -self._intensity(outputs, gaps)[1]
    weights, z, _, _ = self._mixture(outputs, gaps)
    found = jax.nn.logsumexp(
        weights + jax.scipy.special.log_ndtr(-z), axis=-1
    )
    return jnp.where(gaps > 0, found, 0)

  def log_likelihood(
      self, outputs: jax.Array, types: jax.Array, gaps: jax.Array
  ) -> jax.Array:
    """Returns the log-likelihood of what came next.

    Args:
      outputs: What `__call__` or `step` returned, `[..., N]`.
      types: The types of the next events, `[...]`; `K` where there was none
        until the window ended.
      gaps: The time to the next event, or to the end of the window, `[...]`.

    Returns:
      `[...]`, in nats, float32 or wider.
    """
    kinds = self.config.vocab_size - 1
    happens = types < kinds
    # Selected before the logarithm: a gap of 0 at the end has no density.
    density = self.log_density(outputs, jnp.where(happens, gaps, 1))
    chosen = jnp.where(happens, types, 0)[..., None]
    return jnp.where(
        happens, jnp.take_along_axis(density, chosen, axis=-1)[..., 0],
        self.log_survival(outputs, gaps),
    )

  def _encode(self, types, gaps, reset, mask, axes):
    """Returns features `[B, T, D]` or `[B, D]`, and the flags, checked."""
    config = self.config
    types, reset, mask = inputs_lib.check_tokens(
        types, reset, mask, vocab_size=config.vocab_size, axes=axes
    )
    gaps = checking.as_array('gaps', gaps, required=True)
    if gaps.shape != types.shape or not jnp.issubdtype(
        gaps.dtype, jnp.floating
    ):
      raise ValueError(
          f'`gaps` must be floating numbers {types.shape} like `types`, got '
          f'{gaps.dtype} {gaps.shape}.'
      )
    x = inputs_lib.embed(config, self.embed, types)
    # Padding may be NaN, so it is removed before the matmul.
    known = self._known(base.masked(gaps, mask)).astype(x.dtype)
    return x + common.project(self.encoder, known), reset, mask

  def _known(self, gaps):
    """Returns what a model reads of gaps `[...]`: numbers `[..., F]`."""
    mean, deviation = self.config.gap_mean, self.config.gap_deviation
    gaps = gaps.astype(base.state_dtype(gaps.dtype))
    z = jnp.clip((jnp.log(_positive(gaps)) - mean) / deviation, -_LIMIT, _LIMIT)
    speeds = jnp.exp(-mean - deviation * jnp.linspace(-2, 2, _SCALES))
    faded = jnp.exp(-gaps[..., None] * speeds.astype(gaps.dtype))
    return jnp.concatenate([z[..., None], faded], axis=-1)

  def _finish(self, x, mask):
    y = common.project(self.head, x, base.state_dtype(x.dtype))
    return base.masked(y, mask)

  def _parts(self, outputs):
    """Splits `[..., N]` by the sizes of what it holds."""
    ends = [sum(self._sizes[: i + 1]) for i in range(len(self._sizes) - 1)]
    return jnp.split(outputs, ends, axis=-1)

  def _mixture(self, outputs, gaps):
    """Returns log weights, standardised gaps, deviations, types' features."""
    weights, means, deviations, types = self._parts(outputs)
    means = means + jnp.linspace(-2, 2, self.config.components)
    deviations = jax.nn.softplus(deviations) + _SMALL
    config = self.config
    y = (jnp.log(_positive(gaps)) - config.gap_mean) / config.gap_deviation
    z = (y[..., None] - means) / deviations
    return jax.nn.log_softmax(weights), z, deviations, types

  def _intensity(self, outputs, gaps):
    """Returns the rates `[..., K]` and the expected number of events `[...]`.

    Time is measured in typical gaps.
    """
    limits, starts, decays = map(
        lambda u: jax.nn.softplus(u) + _SMALL, self._parts(outputs)
    )
    split = lambda u: u.reshape(*limits.shape, self.config.components)
    starts, decays, limits = split(starts), split(decays), limits[..., None]
    typical = math.exp(self.config.gap_mean)
    s = (gaps.astype(outputs.dtype) / typical)[..., None, None]
    gone = -jnp.expm1(-decays * s)
    rates = starts + (limits - starts) * gone
    expected = limits * s + (starts - limits) * gone / decays
    return rates.mean(-1) / typical, expected.mean(-1).sum(-1)


_positive = functools.partial(jnp.maximum, 1e-30)
