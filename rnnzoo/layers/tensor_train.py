"""Matrices in tensor-train form (Oseledets, 2011), and maps to gates.

A matrix of `prod(m)` rows and `prod(n)` columns is stored as d cores of shapes
`[r_{k-1}, m_k, n_k, r_k]` with `r_0 = r_d = 1`. Let a row have the mixed-radix
digits `i_1 ... i_d` and a column `j_1 ... j_d`. The element there is the
product of the d small matrices `core_k[:, i_k, j_k, :]`.
"""

from collections.abc import Sequence
import math

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import checking
from rnnzoo.layers import common

FORMS = ('joint', 'first', 'last', 'separate')


def matmul(x: jax.Array, cores: Sequence[jax.Array], dtype=None) -> jax.Array:
  """Multiplies by a tensor-train matrix, core by core, without forming it.

  >>> import jax.numpy as jnp
  >>> cores = jnp.ones((1, 2, 3, 4)), jnp.ones((4, 5, 2, 1))
  >>> matmul(jnp.ones((7, 10)), cores).shape
  (7, 6)

  Args:
    x: `[..., prod(m)]`.
    cores: The cores, first to last.
    dtype: Dtype of the result, in which products are also summed; `x.dtype` if
      `None`.

  Returns:
    `[..., prod(n)]`.
  """
  lead = x.shape[:-1]
  y = x.reshape(*lead, 1, 1, x.shape[-1])  # Columns so far, rank, rows left.
  for core in cores:
    r, m, n, s = core.shape
    done, rows = y.shape[-3], y.shape[-1] // m
    y = jnp.einsum(
        '...prmq,rmns->...pnsq',
        y.astype(x.dtype).reshape(*lead, done, r, m, rows),
        core.astype(x.dtype),
        preferred_element_type=dtype or x.dtype,
    ).reshape(*lead, done * n, s, rows)
  return y.reshape(*lead, y.shape[-3])


def nearly_equal_factors(size: int, count: int) -> tuple[int, ...]:
  """Writes `size` as a product of `count` factors with the least sum.

  >>> nearly_equal_factors(96, 3), nearly_equal_factors(7, 2)
  ((4, 4, 6), (1, 7))

  Args:
    size: The product.
    count: Number of factors. Some are 1 if `size` has too few divisors.

  Returns:
    The factors, in ascending order.
  """

  def splits(size, count, least):
    if count == 1:
      yield (size,)
      return
    for first in range(least, math.isqrt(size) + 1):
      if size % first == 0:
        for others in splits(size // first, count - 1, first):
          if others[0] >= first:
            yield (first, *others)

  return min(splits(size, count, 1), key=sum)


class TTGates(nnx.Module):
  """A map `[D] -> [G, H]` in tensor-train form, for the gates of a cell.

  Attributes:
    cores: The cores `[r, m, n, r']`, `[G, r, m, n, r']` if separate.
    bias: `[G, H]`, or `None`.
    form: One of `FORMS`.
  """

  def __init__(
      self,
      gates: int,
      in_factors: Sequence[int],
      out_factors: Sequence[int],
      rank: int,
      form: str,
      *,
      use_bias: bool = True,
      recurrent: bool = False,
      param_dtype=jnp.float32,
      rngs: nnx.Rngs,
  ):
    """Creates the map.

    Cores are normal, scaled so that the elements of the matrix have the Glorot
    variance `2 / (rows + columns)`. Biases are 0.001.

    Args:
      gates: `G`.
      in_factors: Factors of `D`, one for each core.
      out_factors: As many factors, of `G * H` if joint, else of `H`.
      rank: Size of the axes that join two cores.
      form: `joint`, one matrix `[D, G * H]`; `first` or `last`, the same with a
        core of its own for the gates; `separate`, a matrix for each gate.
      use_bias: Whether there is a bias.
      recurrent: Whether this is the map of the state.
      param_dtype: Dtype of the parameters.
      rngs: Source of the initial parameters.
    """
    rows, columns = list(in_factors), list(out_factors)
    if form == 'first':
      rows, columns = [1, *rows], [gates, *columns]
    elif form == 'last':
      rows, columns = [*rows, 1], [*columns, gates]
    self.form = form
    self.gates = gates
    self.hidden_features = math.prod(columns)
    if form != 'separate':
      self.hidden_features //= gates
    ranks = [1] + [rank] * (len(rows) - 1) + [1]
    # An element is a sum over all ranks of products of len(rows) numbers.
    variance = 2 / (math.prod(rows) + math.prod(columns)) / math.prod(ranks)
    deviation = variance ** (0.5 / len(rows))
    copies = (gates,) if form == 'separate' else ()
    self.cores = nnx.List([
        nnx.Param(
            deviation * jax.random.normal(
                rngs.params(), (*copies, r, m, n, s), param_dtype
            ),
            axes=(None,) * (4 + len(copies)),
            recurrent=recurrent,
        )
        for r, m, n, s in zip(ranks, rows, columns, ranks[1:])
    ])
    if use_bias:
      self.bias = nnx.Param(
          jnp.full((gates, self.hidden_features), 1e-3, param_dtype),
          axes=(None, 'hidden'), recurrent=recurrent,
      )
    else:
      self.bias = None

  def __call__(self, x: jax.Array, dtype=None) -> jax.Array:
    """Maps `[..., D]` to `[..., G, H]` of `dtype`, `x.dtype` if `None`."""
    dtype = dtype or x.dtype
    cores = [core[...] for core in self.cores]
    if self.form == 'separate':
      y = jnp.stack([
          matmul(x, [core[gate] for core in cores], dtype)
          for gate in range(self.gates)
      ], axis=-2)
    else:
      y = matmul(x, cores, dtype)
      if self.form == 'last':
        y = y.reshape(*x.shape[:-1], self.hidden_features, self.gates)
        y = y.swapaxes(-1, -2)
      y = y.reshape(*x.shape[:-1], self.gates, self.hidden_features)
    return y if self.bias is None else common.add_bias(y, self.bias[...])


def cell_maps(
    gates,
    in_features,
    hidden_features,
    *,
    num_cores,
    rank,
    form,
    in_factors,
    hidden_factors,
    gate_factors,
    hidden_bias,
    param_dtype,
    rngs,
):
  """Makes the maps of a cell, from its input and its state to `[G, H]`.

  Args:
    gates: `G`.
    in_features: `D`.
    hidden_features: `H`.
    num_cores: Number of factors of each size.
    rank: Rank between two cores.
    form: One of `FORMS`.
    in_factors: Factors of `D`, or `None`.
    hidden_factors: Factors of `H` as rows of the second map, or `None`.
    gate_factors: Factors of the outputs, or `None`.
    hidden_bias: Whether the second map has a bias.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.

  Returns:
    Two `TTGates`.

  Raises:
    ValueError: If the factors do not fit, or the form is unknown.
  """
  if form not in FORMS:
    raise ValueError(f'`form` must be one of {list(FORMS)}, got {form!r}.')
  checking.check_sizes(num_cores=num_cores, rank=rank)

  def factors(name, given, size):
    if given is None:
      return nearly_equal_factors(size, num_cores)
    if len(given) != num_cores or math.prod(given) != size or min(given) < 1:
      raise ValueError(
          f'`{name}` must be {num_cores} numbers whose product is {size}, got '
          f'{tuple(given)}.'
      )
    return tuple(given)

  columns = hidden_features * (gates if form == 'joint' else 1)
  out = factors('gate_factors', gate_factors, columns)
  rows = factors('in_factors', in_factors, in_features)
  hidden_rows = factors('hidden_factors', hidden_factors, hidden_features)
  return (
      TTGates(
          gates, rows, out, rank, form, param_dtype=param_dtype, rngs=rngs
      ),
      TTGates(
          gates, hidden_rows, out, rank, form, use_bias=hidden_bias,
          recurrent=True, param_dtype=param_dtype, rngs=rngs,
      ),
  )
