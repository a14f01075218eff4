"""Adapters of the delta rule's kin, and MesaNet; see `golden_adapters.py`."""

from flax import nnx
import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo import ops
from rnnzoo.layers import comba as comba_lib
from rnnzoo.layers import delta_memory
from rnnzoo.layers import gated_delta_net2
from rnnzoo.layers import gated_delta_product
from rnnzoo.layers import kda as kda_lib
from tests.golden_adapters import with_parameters


def kda(case):
  q, k = (delta_memory.shared(u, case.v.shape[2]) for u in (case.q, case.k))
  S, y = ops.dplr_scan(
      **kda_lib.operands(q, k, case.v, case.beta, case.g), S0=case.st0['S'],
      scale=case.cfg['scale'], chunk_size=8,
  )
  return {'y': y}, {'S': S}


def kda_gate(case):
  return {'y': kda_lib.log_decay(
      case.g_raw, case.par['A_log'], case.par['dt_bias'],
      lower_bound=case.cfg['lower_bound'],
  )}, {}


def gated_delta_net2_op(case):
  S, y = ops.dplr_scan(
      **gated_delta_net2.operands(
          case.q, case.k, case.v, case.b, case.w, case.g
      ),
      S0=case.st0['S'], scale=case.cfg['scale'], chunk_size=8,
  )
  return {'y': y}, {'S': S}


def comba_op(case):
  S, y = ops.dplr_scan(
      **comba_lib.operands(
          case.q, case.k, case.v, case.p, case.beta, case.g
      ),
      S0=case.st0['S'], scale=case.cfg['scale'], chunk_size=8,
  )
  return {'y': y}, {'S': S}


def delta_product(case):
  S, y = ops.delta_product(
      case.q, *steps_of_tokens(case), case.st0['S'],
      log_decay=getattr(case, 'g', None), scale=case.cfg['scale'],
      chunk_size=8,
  )
  return {'y': y}, {'S': S}


def grouped_delta_rule(case):
  q, k = case.q, case.k
  if case.cfg['qk_l2norm']:
    q, k = delta_memory.unit(q), delta_memory.unit(k)
  q, k = (delta_memory.shared(u, case.v.shape[2]) for u in (q, k))
  S, y = ops.delta_rule(
      q, k, case.v, case.beta, case.st0['S'], log_decay=case.g,
      scale=case.cfg['scale'], chunk_size=8,
  )
  return {'y': y}, {'S': S}


def kda_layer(case):
  layer = kda_lib.KDA(
      case.x.shape[2], **sizes(case),
      lower_bound=case.cfg.get('lower_bound'),
      allow_negative_eigenvalues=case.cfg.get('beta_max') == 2,
      use_gate_bias='b_gb' in case.par, chunk_size=8, rngs=nnx.Rngs(0),
  )
  values = low_rank_maps(case) | {'beta.kernel': case.par['W_b'].T}
  return run(case, layer, values)


def gated_delta_net2_layer(case):
  layer = layers.GatedDeltaNet2(
      case.x.shape[2], **sizes(case),
      allow_negative_eigenvalues=case.cfg['b_max'] == 2, chunk_size=8,
      rngs=nnx.Rngs(0),
  )
  values = low_rank_maps(case) | {
      'erase.kernel': into_heads(case.par['W_b'], layer.num_heads),
      'write.kernel': into_heads(case.par['W_w'], layer.num_value_heads),
  }
  return run(case, layer, values)


def gated_delta_product_layer(case):
  layer = gated_delta_product.GatedDeltaProduct(
      case.x.shape[2], num_householder=case.cfg['num_householder'],
      allow_negative_eigenvalues=case.cfg['beta_max'] == 2, **sizes(case),
      chunk_size=8, rngs=nnx.Rngs(0),
  )
  return run(case, layer, head_decay_maps(case))


def comba_layer(case):
  layer = comba_lib.Comba(
      case.x.shape[2], **sizes(case), chunk_size=8, rngs=nnx.Rngs(0)
  )
  return run(case, layer, head_decay_maps(case) | {
      'feedback': case.par['decay'], 'feedthrough': case.par['D']
  })


def gated_delta_net_layer(case):
  layer = layers.GatedDeltaNet(
      case.x.shape[2], **sizes(case), chunk_size=8, rngs=nnx.Rngs(0)
  )
  return run(case, layer, head_decay_maps(case))


def mesa_net_op(case):
  state, y = ops.mesa_scan(
      case.q, case.k, case.v, case.beta, case.par['lamb'],
      ops.MesaState(case.st0['h_kk'], case.st0['h_kv']), log_decay=case.g,
      solver=case.cfg['solver'], chunk_size=8,
  )
  return {'y': y}, {'h_kk': state.G, 'h_kv': state.M}


def mesa_net_layer(case):
  layer = layers.MesaNet(
      case.x.shape[2], **sizes(case), solver=case.cfg['solver'],
      min_ridge=case.cfg['lambda_lower_bound'], chunk_size=8,
      rngs=nnx.Rngs(0),
  )
  carry, y = with_parameters(layer, mesa_maps(case, layer.num_heads))(
      case.x, layers.MesaNetCarry(
          case.st0['conv'], case.st0['h_kk'], case.st0['h_kv']
      ),
  )
  return {'y': y}, {'conv': carry.conv, 'h_kk': carry.G, 'h_kv': carry.M}


ADAPTERS = dict(
    comba=comba_op,
    comba__layer=comba_layer,
    gated_delta_product=delta_product,
    gated_delta_product__layer=gated_delta_product_layer,
    gated_delta_product__n3=delta_product,
    gated_delta_product__ungated=delta_product,
    gated_deltanet__qwen3_next=gated_delta_net_layer,
    gated_deltanet__qwen3_next_h0=gated_delta_net_layer,
    gdn2=gated_delta_net2_op,
    gdn2__layer=gated_delta_net2_layer,
    gdn2__neg_eigval=gated_delta_net2_op,
    grouped_gated_delta_rule=grouped_delta_rule,
    grouped_gated_delta_rule__raw=grouped_delta_rule,
    kda=kda,
    kda__grouped=kda,
    kda__layer=kda_layer,
    kda__layer_fla=kda_layer,
    kda__layer_fla_safe=kda_layer,
    kda__layer_h0=kda_layer,
    kda_gate=kda_gate,
    kda_gate__lower_bound=kda_gate,
    mesa_net=mesa_net_op,
    mesa_net__layer=mesa_net_layer,
)


# What these adapters share: names, axes and sizes.


def steps_of_tokens(case):
  """`k`, `v` and `beta`, whose steps are in one line, with an axis of steps."""
  count = case.cfg['num_householder']
  return tuple(
      u.reshape(u.shape[0], u.shape[1] // count, count, *u.shape[2:])
      for u in (case.k, case.v, case.beta)
  )


def sizes(case):
  """The options of a layer that say how large it is."""
  cfg, options = case.cfg, {}
  heads = cfg['num_k_heads'] if 'num_k_heads' in cfg else cfg['num_heads']
  if 'num_v_heads' in cfg:
    options['num_value_heads'] = cfg['num_v_heads']
  return options | dict(
      num_heads=heads, key_features=case.par['W_q'].shape[0] // heads,
      value_features=case.par['norm_w'].shape[0],
      norm_epsilon=cfg['norm_eps'],
  )


def into_heads(matrix, num_heads):
  """A matrix `[H K, in]` as a kernel `[in, H, K]`."""
  return matrix.T.reshape(matrix.shape[1], num_heads, -1)


def low_rank_maps(case):
  """The maps to decays and to the gate of an output, in two parts each."""
  par = case.par
  keys = par['dt_bias'].shape[0] // par['A_log'].shape[0]
  values = par['norm_w'].shape[0]
  found = {
      'decay_in.kernel': par['W_fa'].T, 'gate_in.kernel': par['W_ga'].T,
      'decay_out.kernel': into_heads(par['W_fb'], par['A_log'].shape[0]),
      'gate_out.kernel': into_heads(
          par['W_gb'], par['W_gb'].shape[0] // values
      ),
      'dt_bias': par['dt_bias'].reshape(-1, keys), 'A_log': par['A_log'],
  }
  if 'b_gb' in par:
    found['gate_out.bias'] = par['b_gb'].reshape(-1, values)
  return found


def head_decay_maps(case):
  """The maps to decays, rates and the gate of an output, for each head."""
  par = case.par
  gate = par['W_g'] if 'W_g' in par else par['W_z']
  return {
      'decay.kernel': par['W_a'].T, 'beta.kernel': par['W_b'].T,
      'gate.kernel': gate.T, 'A_log': par['A_log'], 'dt_bias': par['dt_bias'],
  }


def mesa_maps(case, num_heads):
  """The parameters of MesaNet."""
  par = case.par
  join = lambda name: jnp.concatenate([par[name + u].T for u in 'qk'], axis=1)
  return {
      'query_key.kernel': join('W_'), 'conv': join('conv_'),
      'value.kernel': into_heads(par['W_v'], num_heads),
      'gates.kernel': jnp.stack([par['W_b'].T, par['W_a'].T], axis=1),
      'gates.bias': jnp.stack([par['b_b'], par['b_a']]),
      'ridge': par['lambda_params'].reshape(num_heads, -1),
      'norm.scale': par['norm_w'], 'output.kernel': par['W_o'].T,
  }


def run(case, layer, values):
  """Runs a layer with its parameters, `values` and those that all have."""
  par = case.par
  join = lambda name: jnp.concatenate([par[name + u].T for u in 'qkv'], axis=1)
  layer = with_parameters(layer, values | {
      'qkv.kernel': join('W_'), 'conv': join('conv_'),
      'norm.scale': par['norm_w'], 'output.kernel': par['W_o'].T,
  })
  carry = layers.delta_net.DeltaNetCarry(**case.st0) if case.st0 else None
  carry, y = layer(case.x, carry)
  return {'y': y}, carry._asdict()
