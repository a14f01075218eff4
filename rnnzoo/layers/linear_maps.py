"""Constructors of linear maps that several layers share."""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo.layers import initializers


def cell_input(
    gates, in_features, hidden_features, param_dtype, rngs, bias=None,
    use_bias=True,
):
  """Makes the map `[D] -> [G, H]` from the input to the gates of a cell.

  Args:
    gates: `G`.
    in_features: `D`.
    hidden_features: `H`.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.
    bias: Initial bias of each gate; zeros if `None`.
    use_bias: Whether there is a bias.

  Returns:
    An `nnx.LinearGeneral`, Glorot uniform.
  """
  values = jnp.repeat(jnp.asarray(bias or (0.0,) * gates), hidden_features)
  return nnx.LinearGeneral(
      in_features,
      (gates, hidden_features),
      use_bias=use_bias,
      kernel_init=_per_gate(nnx.initializers.glorot_uniform(), gates),
      bias_init=lambda key, shape, dtype: values.astype(dtype).reshape(shape),
      kernel_metadata=dict(axes=('embed', None, 'hidden')),
      bias_metadata=dict(axes=(None, 'hidden')),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def cell_hidden(
    gates, hidden_features, use_bias, param_dtype, rngs, init=None
):
  """Makes the map `[H] -> [G, H]` from state to gates.

  Args:
    gates: `G`.
    hidden_features: `H`.
    use_bias: Whether there is a bias, of zeros.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.
    init: Initialiser of the matrix of each gate; orthogonal if `None`.

  Returns:
    An `nnx.LinearGeneral`.
  """
  return nnx.LinearGeneral(
      hidden_features,
      (gates, hidden_features),
      use_bias=use_bias,
      kernel_init=_per_gate(init or nnx.initializers.orthogonal(), gates),
      kernel_metadata=dict(axes=('state', None, 'hidden'), recurrent=True),
      bias_metadata=dict(axes=(None, 'hidden'), recurrent=True),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def _per_gate(init, gates):
  """Draws the matrix of each gate separately, for the right fan-out."""

  def fused(key, shape, dtype):  # Flax asks for [in, G * H].
    keys = jax.random.split(key, gates)
    shape = (shape[0], shape[1] // gates)
    wide = jnp.promote_types(jnp.float32, dtype)  # No QR below float32.
    drawn = [init(k, shape, wide) for k in keys]
    return jnp.concatenate(drawn, axis=1).astype(dtype)

  return fused


def gate_map(
    gates, in_features, hidden_features, use_bias, param_dtype, rngs,
    shift: jax.typing.ArrayLike = 0.0,
):
  """Makes the map `[D] -> [G, H]` from inputs to logits of gates.

  Its parameters are marked as recurrent: weight decay leaves them alone.

  Args:
    gates: `G`.
    in_features: `D`.
    hidden_features: `H`.
    use_bias: Whether there is a bias `[G, H]`.
    param_dtype: Dtype of the parameters.
    rngs: Source of the initial parameters.
    shift: Added to the initial bias; broadcast to `[G, H]`.

  Returns:
    An `nnx.LinearGeneral`.
  """
  return nnx.LinearGeneral(
      in_features,
      (gates, hidden_features),
      use_bias=use_bias,
      kernel_init=initializers.uniform_fan_in(in_features),
      # Flax calls it with a flat shape.
      bias_init=initializers.uniform_fan_in(
          in_features,
          jnp.broadcast_to(shift, (gates, hidden_features)).reshape(-1),
      ),
      kernel_metadata=dict(axes=('embed', None, 'hidden'), recurrent=True),
      bias_metadata=dict(axes=(None, 'hidden'), recurrent=True),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def output_map(
    hidden_features, out_features, use_bias, param_dtype, rngs
):
  """Makes a map `[H] -> [D]` with the default initialisation of PyTorch."""
  return nnx.Linear(
      hidden_features,
      out_features,
      use_bias=use_bias,
      kernel_init=initializers.uniform_fan_in(hidden_features),
      bias_init=initializers.uniform_fan_in(hidden_features),
      kernel_metadata=dict(axes=('hidden', 'embed')),
      bias_metadata=dict(axes=(None,)),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def normal_map(
    in_features, out_features, axes, std, *, use_bias=False, param_dtype, rngs
):
  """Makes a map `[in] -> [out]` of normal numbers, with biases of 0 if any."""
  return nnx.Linear(
      in_features,
      out_features,
      use_bias=use_bias,
      kernel_init=nnx.initializers.normal(std),
      kernel_metadata=dict(axes=axes),
      bias_metadata=dict(axes=axes[1:]),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def head_size(name, features, total, num_heads):
  """Returns the features of a head: `features`, or `total / num_heads`.

  Raises:
    ValueError: If there is no such number.
  """
  if num_heads < 1:
    raise ValueError(f'`num_heads` must be at least 1, got {num_heads}.')
  if features is None:
    if total % num_heads:
      raise ValueError(
          f'`num_heads` must divide {total}, got {num_heads}; or give `{name}`.'
      )
    return total // num_heads
  if features < 1:
    raise ValueError(f'`{name}` must be at least 1, got {features}.')
  return features


def into_heads(
    in_features, num_heads, features, kernel_init, *, axis='embed',
    bias_init=None, use_bias=False, param_dtype, rngs,
):
  """Makes a map `[D] -> [H, features]`, initialised as `[D, H features]`."""
  return nnx.LinearGeneral(
      in_features,
      (num_heads, features),
      use_bias=use_bias,
      kernel_init=kernel_init,
      bias_init=bias_init or nnx.initializers.zeros,
      kernel_metadata=dict(axes=(axis, 'heads', None)),
      bias_metadata=dict(axes=('heads', None)),
      param_dtype=param_dtype,
      rngs=rngs,
  )


def out_of_heads(
    hidden_features, out_features, kernel_init, *, bias_init=None,
    use_bias=False, param_dtype, rngs,
):
  """Makes a map `[H V] -> [D]`."""
  return nnx.Linear(
      hidden_features,
      out_features,
      use_bias=use_bias,
      kernel_init=kernel_init,
      bias_init=bias_init or nnx.initializers.zeros,
      kernel_metadata=dict(axes=('hidden', 'embed')),
      bias_metadata=dict(axes=(None,)),
      param_dtype=param_dtype,
      rngs=rngs,
  )
