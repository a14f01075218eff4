"""Adapters of Mamba-3; see `golden_adapters.py`."""

from flax import nnx
import jax.numpy as jnp
from rnnzoo.layers import mamba3
from tests.golden_adapters import with_parameters


def siso(case):
  par, D = case.par, case.par['D'] if 'D' in case.par else None
  C, B, x = (one_rank(u, i) for u, i in ((case.C, 2), (case.B, 2), (case.x, 3)))
  carry, y = mamba3.recurrence(
      mamba3.of_heads(C, one_rank(par['C_bias'], 1)),
      mamba3.of_heads(B, one_rank(par['B_bias'], 1)),
      x, case.dt, case.adt, case.trap, case.angle, carry_of(case),
      rotation=rotation(case), chunk_size=8,
  )
  y = mamba3.outputs(y, x, getattr(case, 'z', None), D=D)
  return {'y': y}, states_of(carry, 0)


def mimo(case):
  par = case.par
  x = mamba3.of_ranks(case.x, par['mimo_x'])
  carry, y = mamba3.recurrence(
      mamba3.of_heads(case.C, par['C_bias']),
      mamba3.of_heads(case.B, par['B_bias']),
      x, case.dt, case.adt, case.trap, case.angle, carry_of(case),
      rotation=rotation(case), chunk_size=8,
  )
  y = mamba3.outputs(
      y, x, case.z, D=par['D'], mimo_z=par['mimo_z'], mimo_o=par['mimo_o']
  )
  return {'y': y}, states_of(carry, ...)


def layer(case):
  cfg, par = case.cfg, case.par
  made = mamba3.Mamba3(
      case.x.shape[2], state_features=cfg['d_state'],
      expansion_factor=cfg['expand'], head_features=cfg['headdim'],
      num_groups=cfg['ngroups'], rotary_fraction=cfg['rope_fraction'],
      a_floor=cfg['A_floor'], norm_epsilon=cfg['norm_eps'], chunk_size=8,
      rngs=nnx.Rngs(0),
  )
  maps = input_maps(par['W_in'].T, made, cfg['num_rope_angles'])
  carry, y = with_parameters(made, maps | {
      'dt_bias': par['dt_bias'], 'D': par['D'],
      'out_proj.kernel': par['W_out'].T,
      'B_norm.scale': par['B_norm_w'], 'C_norm.scale': par['C_norm_w'],
      'B_bias': one_rank(par['B_bias'], 1),
      'C_bias': one_rank(par['C_bias'], 1),
  })(case.x)
  return {'y': y}, states_of(carry, 0)


ADAPTERS = dict(
    mamba3=siso,
    mamba3__h0=siso,
    mamba3__layer=layer,
    mamba3__layer_rope_full=layer,
    mamba3__mimo=mimo,
    mamba3__mimo_h0=mimo,
    mamba3__mimo_half=mimo,
    mamba3__plain=siso,
)


# What these adapters share: names, axes and sizes.


def one_rank(u, axis):
  """`u` with an axis of one rank."""
  return jnp.expand_dims(u, axis)


def rotation(case):
  """Our name of how features are paired."""
  return dict(pairs='neighbors', half='halves')[case.cfg['rotary']]


def carry_of(case):
  """The state before the first token."""
  heads, ranks = case.x.shape[2], case.cfg.get('mimo_rank', 1)
  batch, n, p = case.x.shape[0], case.B.shape[-1], case.x.shape[-1]
  zeros = lambda *sizes: jnp.zeros((batch, heads, *sizes), case.x.dtype)
  if not case.st0:
    return mamba3.Mamba3Carry(
        zeros(case.angle.shape[-1]), zeros(n, p), zeros(ranks, n),
        zeros(ranks, p),
    )
  st0 = case.st0
  return mamba3.Mamba3Carry(
      st0['angle'], st0['h'].swapaxes(2, 3),
      st0['k'].reshape(batch, heads, ranks, n),
      st0['x'].reshape(batch, heads, ranks, p),
  )


def states_of(carry, ranks):
  """The state by the names of the file."""
  return {
      'angle': carry.angle, 'h': carry.ssm.swapaxes(2, 3),
      'k': carry.k[:, :, ranks], 'x': carry.x[:, :, ranks],
  }


def input_maps(matrix, layer, angles):
  """The columns of the published input map, as our four maps."""
  inner, heads = layer.hidden_features, layer.num_heads
  shared = 2 * layer.rank * layer.num_groups * layer.state_features
  sizes = [2 * inner, shared, 3 * heads, angles]
  columns = [
      matrix[:, sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))
  ]
  rows = matrix.shape[0]
  return {
      'in_proj.kernel': columns[0].reshape(rows, 2, inner),
      'bc_proj.kernel': columns[1],
      'rates_proj.kernel': columns[2].reshape(rows, 3, heads),
      'angle_proj.kernel': columns[3],
  }
