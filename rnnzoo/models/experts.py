"""Mixtures of experts: an MLP of which each token uses a small part."""

from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import errors
from rnnzoo import fields
from rnnzoo import ops
from rnnzoo.layers import base
from rnnzoo.layers import common
from rnnzoo.layers import initializers
from rnnzoo.models import maps
from rnnzoo.models.config import ModelConfig

# Arguments of `Experts` that are not in `ModelConfig.experts`.
_GIVEN = ('self', 'features', 'hidden_features', 'kind', 'param_dtype', 'rngs')


class Experts(nnx.Module):
  r"""A mixture of experts (Shazeer et al., 2017).

  .. math::
      y_t = s \sum_{e \in C_t} w_{t,e} \, \mathrm{MLP}_e(x_t)
            + \mathrm{MLP}_{\mathrm{shared}}(x_t)

  `C_t` are the `K` experts with the largest scores. There are two kinds of
  scores of the logits `r_t = W_r x_t`, of which one is computed for each
  expert:

  - `softmax`: `w_t = softmax(r_t)`. If `renormalize`, they are divided by the
    sum of those chosen, which is the softmax of the chosen logits (Mixtral,
    https://arxiv.org/abs/2401.04088).
  - `sigmoid`: `w_t = sigmoid(r_t)`, and experts are chosen by `w_t + b`
    (DeepSeek-V3, https://arxiv.org/abs/2412.19437). The experts form
    `num_groups` groups, and only those of the `top_groups` best groups are
    chosen. A group is as good as the sum of its two best.

  No token is dropped. The experts are sharded over the mesh axis `model`.

  The load-balancing loss (https://arxiv.org/abs/2101.03961) of a batch is
  `balance * E * sum_e f_e p_e`: of expert `e` of `E`, `f_e` is the mean number
  of choices of a token, and `p_e` its mean share of the scores.

  >>> from flax import nnx
  >>> import jax.numpy as jnp
  >>> layer = Experts(8, 16, num_experts=4, rngs=nnx.Rngs(0))
  >>> layer(jnp.ones((2, 5, 8))).shape                    # [B, T, D]
  (2, 5, 8)
  >>> layer(jnp.ones((2, 8))).shape                       # [B, D]
  (2, 8)

  Attributes:
    kind: The kind of all its MLPs.
    num_experts: `E`.
    experts_per_token: `K`.
    router: The map to logits, an `nnx.Linear`.
    correction: `b`, `[E]`, or `None`.
    mlp_in: The first matrices of all experts, `[E, D, G, F]`. With a gate, `G`
      is 2, and the gate is the first; otherwise it is 1.
    mlp_out: The last ones, `[E, F, D]`.
    balance_loss: With `balance`, the load-balancing loss of the last batch in
      training; otherwise `None`.
  """

  def __init__(
      self,
      features: int,
      hidden_features: int,
      *,
      kind: str = 'swiglu',
      num_experts: int = 8,
      experts_per_token: int = 2,
      scores: Literal['softmax', 'sigmoid'] = 'softmax',
      renormalize: bool = True,
      scale: float = 1.0,
      num_groups: int = 1,
      top_groups: int = 1,
      shared_features: int = 0,
      weigh_shared: bool = False,
      latent_features: int = 0,
      balance: float = 0.0,
      param_dtype: Any = jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the experts.

    Args:
      features: `D`.
      hidden_features: The number `F` of hidden features of an expert.
      kind: The kind of all MLPs, see `ModelConfig.mlp`.
      num_experts: `E`.
      experts_per_token: `K`.
      scores: The kind of scores.
      renormalize: Whether the weights of a token are divided by their sum.
      scale: `s`.
      num_groups: The number of groups of experts, with `scores='sigmoid'`.
      top_groups: How many of them a token can choose from.
      shared_features: The number of hidden features of an MLP that all tokens
        share; 0 for no such MLP.
      weigh_shared: Whether its output is multiplied by `sigmoid(W x)`, one
        number for each token.
      latent_features: The size of the inputs and outputs of experts, if they
        are mapped from and to `D` features; 0 if they are not (Nemotron 3).
      balance: The factor of the load-balancing loss.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.

    Raises:
      ValueError: If a size is out of range, or does not divide another one.
    """
    groups = num_experts // max(num_groups, 1)
    allowed = dict(
        num_experts=(num_experts, num_experts >= 1, 'at least 1'),
        experts_per_token=(
            experts_per_token, 1 <= experts_per_token <= num_experts,
            f'from 1 to num_experts = {num_experts}',
        ),
        num_groups=(
            num_groups,
            num_groups == 1 or scores == 'sigmoid' and groups > 1
            and num_groups * groups == num_experts,
            "1, or with scores='sigmoid' a divisor of num_experts = "
            f'{num_experts} that leaves two in a group',
        ),
        top_groups=(
            top_groups, 1 <= top_groups <= num_groups
            and top_groups * groups >= experts_per_token,
            f'from 1 to num_groups = {num_groups}, with as many experts as '
            'experts_per_token',
        ),
    )
    for name, (value, is_good, wanted) in allowed.items():
      if not is_good:
        raise ValueError(f'`{name}` must be {wanted}, got {value}.')
    self.kind, self.scores, self.scale = kind, scores, scale
    self.num_experts, self.experts_per_token = num_experts, experts_per_token
    self.renormalize = renormalize
    self.num_groups, self.top_groups = num_groups, top_groups
    self.balance = balance

    linear = lambda n, m, **axes: maps.linear(
        n, m, param_dtype, rngs, use_bias=False, **axes
    )

    def kernels(sizes, axes):
      init = initializers.uniform_fan_in(sizes[0])
      return nnx.Param(
          init(rngs.params(), (num_experts, *sizes), param_dtype),
          axes=('experts', *axes),
      )

    self.router = linear(features, num_experts, into=None)
    wide = jnp.promote_types(param_dtype, jnp.float32)
    self.correction = (
        nnx.Param(jnp.zeros(num_experts, wide), axes=(None,))
        if scores == 'sigmoid' else None
    )
    size = latent_features or features
    gated = kind in maps.GATED
    self.mlp_in = kernels(
        (size, 1 + gated, hidden_features), ('embed', None, 'mlp')
    )
    self.mlp_out = kernels((hidden_features, size), ('mlp', 'embed'))
    if latent_features:
      self.latent_in = linear(features, size)
      self.latent_out = linear(size, features, out_of='hidden', into='embed')
    self.has_latent, self.has_shared = latent_features > 0, shared_features > 0
    if shared_features:
      self.shared_in = linear(features, shared_features, into='mlp')
      if gated:
        self.shared_gate = linear(features, shared_features, into='mlp')
      self.shared_out = linear(
          shared_features, features, out_of='mlp', into='embed'
      )
      self.shared_weight = (
          linear(features, 1, into=None) if weigh_shared else None
      )
    self.balance_loss = (
        nnx.BatchStat(jnp.zeros(()), axes=()) if balance else None
    )

  def __call__(
      self, x: jax.Array, *, mask: jax.Array | None = None, train: bool = False
  ) -> jax.Array:
    """Runs all tokens.

    Args:
      x: `[B, T, D]`, or `[B, D]` for a step, or with further axes before `D`.
      mask: Booleans `[B, T]` or `[B]`, `False` on tokens to skip, which may
        hold anything.
      train: Whether to keep the load-balancing loss.

    Returns:
      An array like `x`, of its dtype.
    """
    x = base.masked(x, mask)
    logits = common.project(self.router, x, base.state_dtype(x.dtype))
    chosen, weights, scores = self._route(logits)
    if mask is not None:
      flags = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
      chosen = jnp.where(flags, chosen, self.num_experts)
    if train and self.balance_loss is not None:
      self.balance_loss[...] = self._balance(chosen, scores)
    u = common.project(self.latent_in, x) if self.has_latent else x
    y = ops.expert_mlp(
        u, chosen, weights, self.mlp_in[...], self.mlp_out[...],
        maps.NONLINEARITIES[self.kind],
    )
    y = y.astype(x.dtype)
    if self.has_latent:
      y = common.project(self.latent_out, y)
    return y + self._shared(x) if self.has_shared else y

  def _route(self, logits):
    """Returns experts `[..., K]`, their weights, and all scores `[..., E]`."""
    if self.correction is None:
      scores = ranks = jax.nn.softmax(logits)
    else:
      scores = jax.nn.sigmoid(logits)
      ranks = self._of_best_groups(scores + self.correction[...])
    _, chosen = jax.lax.top_k(ranks, self.experts_per_token)
    weights = jnp.take_along_axis(scores, chosen, axis=-1)
    if self.renormalize:
      weights = weights / (weights.sum(-1, keepdims=True) + 1e-20)
    return chosen, weights * self.scale, scores

  def _of_best_groups(self, ranks):
    """Returns `ranks` `[..., E]`, with -inf outside of the best groups."""
    if self.top_groups == self.num_groups:
      return ranks
    groups = ranks.reshape(*ranks.shape[:-1], self.num_groups, -1)
    merits = jax.lax.top_k(groups, 2)[0].sum(-1)
    _, best = jax.lax.top_k(merits, self.top_groups)
    kept = (best[..., None] == jnp.arange(self.num_groups)).any(-2)
    return jnp.where(kept[..., None], groups, -jnp.inf).reshape(ranks.shape)

  def _balance(self, chosen, scores):
    """Returns the load-balancing loss; a choice of no expert is no token."""
    number = self.num_experts
    exists = (chosen[..., :1] < number).astype(scores.dtype)
    count = jnp.maximum(exists.sum(), 1)
    axes = tuple(range(scores.ndim - 1))
    shares = scores / scores.sum(-1, keepdims=True)
    shares = (shares * exists).sum(axes) / count
    hits = (chosen[..., None] == jnp.arange(number)).sum((*axes, -2)) / count
    return self.balance * number * (hits * shares).sum()

  def _shared(self, x):
    gate = self.shared_gate if self.kind in maps.GATED else None
    y = maps.mlp(self.kind, self.shared_in, gate, self.shared_out, x)
    if self.shared_weight is None:
      return y
    return y * jax.nn.sigmoid(common.project(self.shared_weight, x))


def make(
    config: ModelConfig, hidden_features: int, rngs: nnx.Rngs
) -> Experts:
  """Builds the experts of a block.

  >>> config = ModelConfig(features=8, mlp='swiglu', experts=dict(scale=2.0))
  >>> make(config, 16, nnx.Rngs(0)).mlp_in.shape
  (8, 8, 2, 16)

  Args:
    config: That of the block.
    hidden_features: The number of hidden features of an expert.
    rngs: The source of the initial parameters.

  Raises:
    UserValueError: If `config.experts` has an option that does not exist or
      that has a wrong value.
  """
  known = fields.of_arguments(Experts.__init__, without=_GIVEN)
  fields.check_all(config.experts, known, 'model.experts.')
  try:
    return Experts(
        config.features, hidden_features, kind=config.mlp,
        param_dtype=jnp.dtype(config.param_dtype), rngs=rngs, **config.experts,
    )
  except ValueError as error:
    raise errors.UserValueError(f'model.experts: {error}') from error


def balance_loss(model: nnx.Module) -> jax.Array | None:
  """Returns the sum of the load-balancing losses of all blocks of a model.

  It is that of the last call with `train=True`; `None` for a model without any.
  """
  found = [
      node.balance_loss[...].sum() for _, node in nnx.iter_graph(model)
      if isinstance(node, Experts) and node.balance_loss is not None
  ]
  return sum(found[1:], start=found[0]) if found else None
