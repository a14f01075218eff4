"""Adapters of attention, linear and softmax, and of a short convolution.

See `golden_adapters.py`.
"""

from flax import nnx
import jax
from rnnzoo import layers
from rnnzoo import ops
from tests.golden_adapters import with_parameters


def hgrn2(case):
  layer = layers.HGRN2(
      case.x.shape[2], num_heads=case.cfg['num_heads'],
      lower_bound=0.5 if 'lower_bound' in case.par else 0.0,
      norm_epsilon=case.cfg['norm_eps'], chunk_size=8, rngs=nnx.Rngs(0),
  )
  S, y = with_parameters(
      layer, linear_maps(case, query='W_q', forget='W_f', value='W_i')
      | bound_logit(case)
  )(case.x, case.st0.get('S'))
  return {'y': y}, {'S': S}


def lightning(case):
  S, y = ops.linear_attention(
      case.q, case.k, case.v, case.st0['S'],
      log_decay=log_decay(case.par['rate']), scale=case.cfg['scale'],
      chunk_size=8,
  )
  return {'y': y}, {'S': S}


def lightning_attention(case):
  layer = layers.LightningAttention(
      case.x.shape[2], num_heads=case.cfg['num_heads'], head_features=4,
      block_index=case.cfg['layer_idx'], num_blocks=case.cfg['num_layers'],
      norm_epsilon=case.cfg['norm_eps'],
      chunk_size=case.cfg['block_size_used'], rngs=nnx.Rngs(0),
  )
  S, y = with_parameters(layer, linear_maps(
      case, query='W_q', key='W_k', value='W_v', gate='W_g'
  ))(case.x)
  return {'y': y}, {'S': S}


def short_conv(case):
  layer = layers.ShortConv(
      case.x.shape[2], conv_kernel=case.cfg['kernel_size'],
      use_bias='conv_b' in case.par, rngs=nnx.Rngs(0),
  )
  carry = layers.ShortConvCarry(**case.st0) if case.st0 else None
  carry, y = with_parameters(layer, short_conv_parameters(case))(case.x, carry)
  return {'y': y}, {'conv': carry.conv}


def gated_attention(case):
  layer = layers.GatedAttention(
      case.x.shape[2], num_heads=case.cfg['num_heads'],
      num_kv_heads=case.cfg['num_kv_heads'],
      head_features=case.cfg['head_dim'], rotary_fraction=rotary_share(case),
      max_wavelength=case.cfg['rope_theta'], window=32,
      norm_epsilon=case.cfg['norm_eps'], chunk_size=8, rngs=nnx.Rngs(0),
  )
  _, y = with_parameters(layer, gated_attention_parameters(case))(case.x)
  return {'y': y}, {}


ADAPTERS = dict(
    gated_attention=gated_attention,
    hgrn2=hgrn2,
    hgrn2__first_layer=hgrn2,
    lfm2_short_conv=short_conv,
    lfm2_short_conv__bias=short_conv,
    lfm2_short_conv__h0=short_conv,
    lightning=lightning,
    lightning__layer=lightning_attention,
)


# What these adapters share: names and axes, and what is stored another way.


def linear_maps(case, **names):
  """Maps `[H K, D]` as kernels `[D, H, K]`, the norm and the last map."""
  heads = case.cfg['num_heads']
  into = lambda u: u.T.reshape(u.shape[1], heads, -1)
  values = {f'{ours}.kernel': into(case.par[w]) for ours, w in names.items()}
  return values | {
      'norm.scale': case.par['norm_w'], 'output.kernel': case.par['W_o'].T
  }


def bound_logit(case):
  """The bound of HGRN2, given as a number in (0, 1)."""
  if 'lower_bound' not in case.par:
    return {}
  bound = case.par['lower_bound'].reshape(case.cfg['num_heads'], -1)
  return {'bound_logit': jax.scipy.special.logit(bound)}


def log_decay(rate):
  return -rate


def short_conv_parameters(case):
  """In the file the three maps are the thirds of one matrix, in this order."""
  par, size = dict(case.par), case.x.shape[2]
  thirds = lambda u: u.reshape(3, size, *u.shape[1:])
  values = {
      'input.kernel': thirds(par['W_in']).transpose(2, 0, 1),
      'conv': par['conv_w'].T, 'output.kernel': par['W_out'].T,
  }
  if 'conv_b' in par:
    values |= {
        'input.bias': thirds(par['b_in']), 'conv_bias': par['conv_b'],
        'output.bias': par['b_out'],
    }
  return values


def rotary_share(case):
  return case.cfg['rotary_dim'] / case.cfg['head_dim']


def gated_attention_parameters(case):
  """Qwen3-Next stores the scales of norms less 1."""
  names = dict(query='W_q', key='W_k', value='W_v', gate='W_g', output='W_o')
  values = {f'{name}.kernel': case.par[w].T for name, w in names.items()}
  return values | {
      'query_norm.scale': 1 + case.par['q_norm_w'],
      'key_norm.scale': 1 + case.par['k_norm_w'],
  }
