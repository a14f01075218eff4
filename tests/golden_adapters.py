"""From a golden case's names to ours and back; `golden_test.py` runs them.

An adapter renames, transposes and stacks parameters and makes one public call;
it holds no mathematics. `case` has `x` and the like, the inputs; `par` and
`st0`, dictionaries; and `cfg`. It returns outputs and final states by their
names in the file.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo import ops


def linrec_real(case):
  h, y = ops.linear_scan(
      case.a, case.b, case.st0['h'], reverse=case.cfg['reverse']
  )
  return {'y': y}, {'h': h}


def linrec_complex(case):
  h, y = ops.linear_scan(
      jax.lax.complex(case.a_re, case.a_im),
      jax.lax.complex(case.b_re, case.b_im),
      complex_state(case, 'h'),
      reverse=case.cfg['reverse'],
  )
  return parts('y', y), parts('h', h)


def causal_conv1d(case):
  tail, y = ops.causal_conv1d(
      case.x, case.par['w'], case.par['b'], reset=case.segment_pos == 0
  )
  return {'y': y}, {'conv': tail}


def lru(case):
  layer = layers.LRU(
      case.x.shape[2], case.par['nu_log'].shape[0], rngs=nnx.Rngs(0)
  )
  carry, y = with_parameters(layer, case.par)(
      case.x, complex_state(case, 'h') if case.st0 else None
  )
  return {'y': y}, parts('h', carry)


def min_gru(case):
  layer = layers.MinGRU(
      case.x.shape[2],
      expansion_factor=case.cfg['expansion'],
      use_bias=False,
      rngs=nnx.Rngs(0),
  )
  values = {'gates.kernel': stacked(case, 'W_{}', 'zh')}
  if 'W_o' in case.par:
    values['output.kernel'] = case.par['W_o'].T
  carry, y = with_parameters(layer, values)(case.x, case.st0.get('h'))
  return {'y': y}, {'h': carry}


def min_lstm(case):
  layer = layers.MinLSTM(
      case.x.shape[2],
      expansion_factor=case.cfg['expansion'],
      use_bias=False,
      rngs=nnx.Rngs(0),
  )
  values = {'gates.kernel': stacked(case, 'W_{}', 'fih')}
  if 'W_o' in case.par:
    values['output.kernel'] = case.par['W_o'].T
  carry, y = with_parameters(layer, values)(case.x, case.st0.get('h'))
  return {'y': y}, {'h': carry}


def rg_lru(case):
  layer = layers.RGLRU(
      case.x.shape[2], num_heads=case.cfg['num_heads'], rngs=nnx.Rngs(0)
  )
  carry = None
  if case.st0:  # Which goes on with a sequence.
    carry = layers.RGLRUCarry(case.st0['h'], case.segment_pos[:, 0] == 0)
  carry, y = with_parameters(layer, case.par)(
      case.x, carry, reset=case.segment_pos == 0
  )
  return {'y': y}, {'h': carry.h}


def hgrn(case):
  h, y = ops.gated_scan(ops.log_decay_gate, (case.g, case.x), case.st0['h'])
  return {'y': y}, {'h': h}


def elman(case):
  layer = layers.Elman(
      case.x.shape[2], case.st0['h'].shape[1], rngs=nnx.Rngs(0)
  )
  values = {
      'input.kernel': case.par['W_ih'].T[:, None],
      'input.bias': total(case, 'b_ih', 'b_hh')[None],
      'hidden.kernel': case.par['W_hh'].T[:, None],
  }
  carry, y = with_parameters(layer, values)(case.x, case.st0['h'])
  return {'y': y}, {'h': carry}


def gru(case):
  layer = with_parameters(gru_of(case), gru_parameters(case))
  carry, y = layer(case.x, case.st0['h'])
  return {'y': y}, {'h': carry}


def gru_flax_lengths(case):
  layer = with_parameters(gru_of(case), gru_parameters(case))
  mask = layers.mask_from_lengths(case.lengths, case.x.shape[1])
  if case.cfg['reverse']:
    layer = layers.Reverse(layer)
  carry, y = layer(case.x, case.st0['h'], mask=mask)
  return {'y': y}, {'h': carry}


def gru_reset_before(case):
  layer = layers.GRU(
      case.x.shape[2], case.st0['h'].shape[1], reset_after=False,
      rngs=nnx.Rngs(0),
  )
  values = {
      'input.kernel': stacked(case, 'W_{}', 'rzh'),
      'input.bias': stacked(case, 'b_{}', 'rzh'),
      'hidden.kernel': stacked(case, 'U_{}', 'rzh'),
  }
  carry, y = with_parameters(layer, values)(case.x, case.st0['h'])
  return {'y': y}, {'h': carry}


def linoss(case):
  layer = layers.LinOSS(
      case.x.shape[2], case.par['steps'].shape[0],
      discretization=case.cfg['discretization'].lower(), rngs=nnx.Rngs(0),
  )
  carry, y = with_parameters(layer, case.par)(case.x)
  return {'y': y}, {**parts('z', carry.z), **parts('y', carry.y)}


def d_linoss(case):
  layer = layers.DLinOSS(
      case.x.shape[2], case.par['steps'].shape[0], rngs=nnx.Rngs(0)
  )
  carry, y = with_parameters(layer, case.par)(case.x)
  return {'y': y}, {**parts('z', carry.z), **parts('y', carry.y)}


def signed_min_gru(case):
  layer = layers.SignedMinGRU(
      case.x.shape[2],
      expansion_factor=case.st0['h'].shape[1] / case.x.shape[2],
      coupled=case.cfg['coupled'], use_projection=False, rngs=nnx.Rngs(0),
  )
  values = {
      'gates.kernel': stacked(case, 'W_{}', 'zsh'),
      'gates.bias': stacked(case, 'b_{}', 'zsh'),
  }
  carry, y = with_parameters(layer, values)(case.x, case.st0['h'])
  return {'y': y}, {'h': carry}


def para_gru(case):
  layer = layers.ParaGRU(
      case.x.shape[2], case.par['A'].shape[1],
      num_heads=case.cfg['num_heads'], rngs=nnx.Rngs(0),
  )
  carry, y = with_parameters(layer, case.par)(case.x, case.st0.get('h'))
  return {'y': y}, {'h': carry}


def para_lstm(case):
  layer = layers.ParaLSTM(
      case.x.shape[2], case.par['A'].shape[1],
      num_heads=case.cfg['num_heads'], rngs=nnx.Rngs(0),
  )
  carry = layers.LSTMCarry(**case.st0) if case.st0 else None
  carry, y = with_parameters(layer, case.par)(case.x, carry)
  return {'y': y}, {'c': carry.c, 'h': carry.h}


def slstm(case):
  layer = layers.SLSTM(
      case.x.shape[2], case.par['b_f'].shape[0],
      num_heads=case.cfg['num_heads'], rngs=nnx.Rngs(0),
  )
  values = {
      'W': stacked(case, 'W_{}', 'ifzo'),
      'R': stacked(case, 'R_{}', 'ifzo').transpose(3, 0, 2, 1),
      'b': stacked(case, 'b_{}', 'ifzo'),
  }
  carry = layers.SLSTMCarry(**case.st0) if case.st0 else None
  carry, y = with_parameters(layer, values)(case.x, carry)
  c, n, m, h = carry
  return {'y': y}, {'c': c, 'n': n, 'm': m, 'h': h}


def lstm(case):
  layer = layers.LSTM(
      case.x.shape[2], case.st0['h'].shape[1], rngs=nnx.Rngs(0)
  )
  values = {
      'input.kernel': stacked(case, 'W_i{}', 'ifgo'),
      'input.bias': jnp.stack(
          [total(case, 'b_i' + g, 'b_h' + g) for g in 'ifgo']
      ),
      'hidden.kernel': stacked(case, 'W_h{}', 'ifgo'),
  }
  carry, y = with_parameters(layer, values)(
      case.x, layers.LSTMCarry(c=case.st0['c'], h=case.st0['h'])
  )
  return {'y': y}, {'c': carry.c, 'h': carry.h}


def lmu(case):
  layer = layers.LMU(
      case.x.shape[2],
      case.st0['h'].shape[1],
      order=case.st0['m'].shape[1],
      theta=case.cfg['theta'],
      trainable=True,
      rngs=nnx.Rngs(0),
  )
  layer = with_parameters(layer, case.par | {'B': case.par['B'][:, 0]})
  carry, y = layer(case.x, layers.LMUCarry(**case.st0))
  a, b = layers.lmu.legendre_memory(layer.state_features, case.cfg['theta'])
  outputs = {'y': y, 'A_bar': a, 'B_bar': b[:, None]}
  return outputs, {'h': carry.h, 'm': carry.m}


def s6(case):
  h, y = ops.selective_scan(
      case.x, case.delta, case.par['A'], case.B, case.C,
      D=case.par.get('D'),
      z=case.z if case.cfg['gate'] else None,
      delta_bias=case.par.get('delta_bias'),
      delta_softplus=case.cfg['delta_softplus'],
  )
  return {'y': y}, {'h': h}


def mamba(case):
  layer = layers.Mamba(
      case.x.shape[2], state_features=case.cfg['d_state'],
      conv_kernel=case.cfg['d_conv'], dt_rank=case.cfg['dt_rank'],
      expansion_factor=case.cfg['expand'], rngs=nnx.Rngs(0),
  )
  channels, features = case.par['W_out'].T.shape
  into = case.par['W_in'].reshape(2, channels, features).transpose(2, 0, 1)
  values = {name: case.par[name] for name in ('A_log', 'D')} | {
      'in_proj.kernel': into,
      'conv': case.par['conv_w'].T, 'conv_bias': case.par['conv_b'],
      'x_proj.kernel': case.par['W_xproj'].T,
      'dt_proj.kernel': case.par['W_dt'].T, 'dt_bias': case.par['b_dt'],
      'out_proj.kernel': case.par['W_out'].T,
  }
  carry, y = with_parameters(layer, values)(case.x)
  return {'y': y}, {'conv': channels_first(carry.conv), 'ssm': carry.ssm}



def s4d(case):
  values = {
      'C_re': case.par['C'][..., 0], 'C_im': case.par['C'][..., 1],
      **{u: case.par[u] for u in ('log_A_real', 'A_imag', 'log_dt', 'D')},
  }
  sizes = case.x.shape[2], case.par['C'][0].size
  layer = layers.S4D(*sizes, output_map='none', rngs=nnx.Rngs(0))
  _, ssm = with_parameters(layer, values)(case.x)
  values['output.kernel'] = case.par['W_out'].T
  values['output.bias'] = case.par['b_out']
  layer = layers.S4D(*sizes, rngs=nnx.Rngs(0))
  _, y = with_parameters(layer, values)(case.x)
  return {'ssm': ssm, 'y': y}, {}


def s5(case):
  stored, features, _ = case.par['B'].shape
  both = case.par['B'][:, 0].size  # Of each pair.
  layer = layers.S5(
      features,
      both if case.cfg['conj_sym'] else stored,
      conj_sym=case.cfg['conj_sym'],
      discretization=case.cfg['discretization'],
      rngs=nnx.Rngs(0),
  )
  values = {u: case.par[u] for u in ('Lambda_re', 'Lambda_im', 'D')}
  values['log_step'] = case.par['log_step'][:, 0]
  values['B_re'], values['B_im'] = case.par['B'][..., 0], case.par['B'][..., 1]
  values['C_re'], values['C_im'] = case.par['C'][..., 0], case.par['C'][..., 1]
  carry, y = with_parameters(layer, values)(case.x)
  return {'y': y}, parts('h', carry)


def lmu_parallel(case):
  hidden, order = case.par['W_h'].shape[0], case.par['A'].shape[0]
  layer = layers.ParallelLMU(
      case.x.shape[2], hidden, order=order, theta=case.cfg['theta'],
      trainable=True, rngs=nnx.Rngs(0),
  )
  values = {name: case.par[name] for name in ('A', 'W_u', 'b_u', 'b_h')}
  values['B'] = case.par['B'][:, 0]
  values['W_m'] = case.par['W_h'][:, :order]
  values['W_x'] = case.par['W_h'][:, order:]
  _, y = with_parameters(layer, values)(case.x)
  return {'y': y}, {}


def aaren(case):
  heads, head_features = case.par['q'].shape
  layer = layers.Aaren(
      case.x.shape[2], num_heads=heads, head_features=head_features,
      use_projection=False, rngs=nnx.Rngs(0),
  )
  values = {
      'query': case.par['q'],
      'key.kernel': case.par['W_k'].transpose(2, 0, 1),
      'value.kernel': case.par['W_v'].transpose(2, 0, 1),
  }
  carry, y = with_parameters(layer, values)(case.x)
  y = split_heads(y, heads)
  return {'y': y}, {'m': carry.m, 'log_u': carry.log_u}


def wkv(case):
  state, y = ops.wkv(
      case.k, case.v, case.par['w_raw'], case.par['u'],
      ops.WKVState(**case.st0) if case.st0 else None,
  )
  return {'y': y}, state._asdict()


def rwkv4(case):
  layer = layers.RWKV4(case.x.shape[2], rngs=nnx.Rngs(0))
  names = {'key': 'k', 'value': 'v', 'receptance': 'r', 'output': 'o'}
  values = {f'{k}.kernel': case.par[f'W_{v}'].T for k, v in names.items()} | {
      name: case.par[name] for name in ('mu_k', 'mu_v', 'mu_r', 'time_first')
  }
  values['time_decay'] = raw_decay(case.par['time_decay'])
  carry, y = with_parameters(layer, values)(case.x)
  states = {name: getattr(carry, name) for name in ('aa', 'bb', 'pp')}
  return {'y': y}, states | {'x_prev': carry.previous}


def delta_rule(case):
  S, y = ops.delta_rule(
      case.q, case.k, case.v, case.beta, case.st0['S'],
      log_decay=getattr(case, 'g', None), scale=case.cfg['scale'],
      chunk_size=8,
  )
  return {'y': y}, {'S': S}


def rwkv7(case):
  rank, shape = case.par['w1'].shape[1], case.st0['S'].shape[1:3]
  layer = layers.RWKV7(
      case.x.shape[2], head_features=shape[1], decay_rank=rank, rate_rank=rank,
      value_rank=rank, gate_rank=rank, chunk_size=8, rngs=nnx.Rngs(0),
  )
  names = {'receptance': 'r', 'key': 'k', 'value': 'v', 'output': 'o'}
  values = {f'{k}.kernel': case.par[f'W_{v}'].T for k, v in names.items()} | {
      'r_k': case.par['r_k'].reshape(shape),
      'norm.scale': case.par['ln_w'].reshape(shape),
      'norm.bias': case.par['ln_b'].reshape(shape),
  }
  values |= {n: u for n, u in case.par.items() if n[:2] in ('mu', 'k_')}
  values |= {n: u for n, u in case.par.items() if n[0] in 'wavg'}
  carry = layers.RWKV7Carry(case.st0['x_prev'], transposed(case.st0['S']))
  carry, y = with_parameters(layer, values)(case.x, carry, v_first=case.v_first)
  return {'y': y}, {'S': transposed(carry.S), 'x_prev': carry.previous}


def rwkv7_wkv(case):
  S, y = ops.dplr_scan(
      case.r, case.k, case.v, *rank_one(case), case.st0['S'],
      log_decay=case.w, scale=case.cfg['scale'], chunk_size=8,
  )
  return {'y': y}, {'S': S}


def mlstm(case):
  state = None
  if case.st0:
    state = ops.MLSTMState(
        case.st0['C'], case.st0['n'], case.st0['m'][..., 0]
    )
  state, h = ops.mlstm(
      *time_second(case.q, case.k, case.v, case.i, case.f), state,
      eps=case.cfg['eps'], chunk_size=8,
  )
  y, = time_second(h)
  return {'y': y}, {'C': state.C, 'n': state.n, 'm': state.m[..., None]}


def linear_attention(case):
  S, y = ops.linear_attention(
      case.q, case.k, case.v, case.st0['S'], scale=case.cfg['scale'],
      log_decay=getattr(case, 'g', None), chunk_size=4,
  )
  return {'y': y}, {'S': S}


def log_linear_attention(case):
  _, y = ops.log_linear_attention(
      case.q, case.k, case.v, case.level_scales, log_decay=case.g,
      scale=case.cfg['scale'], chunk_size=4,
  )
  return {'y': y}, {}


def retention(case):
  _, y = ops.linear_attention(
      case.q, case.k, case.v, scale=case.cfg['scale'],
      log_decay=layers.ret_net.log_decays(case.q.shape[2]), chunk_size=4,
  )
  return {'y': y}, {}


def ssd(case):
  state = transposed(case.st0['h']) if case.st0 else None
  state, y = ops.linear_attention(
      case.C, case.B, case.x, state, log_decay=case.A, chunk_size=4
  )
  return {'y': y}, {'h': transposed(state)}


def rwkv6_wkv(case):
  S, y = ops.linear_attention(
      case.r, case.k, case.v, case.st0['S'], log_decay=case.w,
      bonus=case.par['u'], scale=case.cfg['scale'], chunk_size=4,
  )
  return {'y': y}, {'S': S}


ADAPTERS = dict(
    aaren=aaren,
    aaren__extreme=aaren,
    causal_conv1d__segments=causal_conv1d,
    d_linoss=d_linoss,
    delta_rule=delta_rule,
    elman=elman,
    gated_delta_rule=delta_rule,
    gla=linear_attention,
    gru=gru,
    gru__flax_lengths=gru_flax_lengths,
    gru__flax_lengths_reverse=gru_flax_lengths,
    gru__reset_before=gru_reset_before,
    hgrn=hgrn,
    linear_attention=linear_attention,
    linoss_im=linoss,
    linoss_imex=linoss,
    linrec_complex=linrec_complex,
    linrec_complex__long=linrec_complex,
    linrec_complex__rev=linrec_complex,
    linrec_real=linrec_real,
    linrec_real__long=linrec_real,
    linrec_real__rev=linrec_real,
    lmu=lmu,
    lmu__parallel=lmu_parallel,
    log_linear_attention=log_linear_attention,
    log_linear_attention__grouped=log_linear_attention,
    lru=lru,
    lru__h0=lru,
    lstm=lstm,
    mamba__block=mamba,
    mingru=min_gru,
    mingru__h0=min_gru,
    minlstm=min_lstm,
    minlstm__h0=min_lstm,
    mlstm=mlstm,
    mlstm__extreme=mlstm,
    mlstm__h0=mlstm,
    para_gru=para_gru,
    para_gru__h0=para_gru,
    para_lstm=para_lstm,
    para_lstm__h0=para_lstm,
    retention=retention,
    rglru=rg_lru,
    rglru__h0=rg_lru,
    rglru__reset=rg_lru,
    rwkv4_timemix=rwkv4,
    rwkv4_wkv=wkv,
    rwkv4_wkv__h0=wkv,
    rwkv6_wkv=rwkv6_wkv,
    rwkv7_timemix=rwkv7,
    rwkv7_wkv=rwkv7_wkv,
    s4d=s4d,
    s5__bilinear=s5,
    s5__zoh=s5,
    s6=s6,
    s6__plain=s6,
    signed_mingru=signed_min_gru,
    signed_mingru__coupled=signed_min_gru,
    simple_gla=linear_attention,
    slstm=slstm,
    slstm__h0=slstm,
    ssd=ssd,
    ssd__h0=ssd,
)


# What adapters share: names and axes, but for a sum, a product, a logarithm.


def with_parameters(layer, values):
  """`layer` with other parameters, all of them, by dotted path."""
  graph, params, constants = nnx.split(layer, nnx.Param, ...)
  flat = dict(nnx.to_flat_state(params))
  shapes = {
      '.'.join(map(str, path)): value[...].shape for path, value in flat.items()
  }
  assert shapes == {name: u.shape for name, u in values.items()}, shapes
  for path, value in flat.items():
    flat[path] = value.replace(values['.'.join(map(str, path))])
  return nnx.merge(graph, nnx.from_flat_state(flat), constants)


def stacked(case, name, gates):
  """Matrices `[out, in]` as one `[in, G, out]`, or biases as one `[G, out]`."""
  return jnp.stack([case.par[name.format(g)].T for g in gates], axis=-2)


def total(case, *names):
  """PyTorch has two biases where there is one place for them: their sum."""
  return sum(case.par[name] for name in names)


def complex_state(case, name):
  return jax.lax.complex(case.st0[f'{name}_re'], case.st0[f'{name}_im'])


def parts(name, u):
  return {f'{name}_re': u.real, f'{name}_im': u.imag}


def split_heads(u, num_heads):
  return u.reshape(*u.shape[:2], num_heads, -1)


def raw_decay(time_decay):
  """Weights are published as `d`, but inference code is given `-exp(d)`."""
  return jnp.log(-time_decay)


def rank_one(case):
  """What RWKV-7's own code gives its kernel for `kk` and `a`."""
  return -case.kk, case.kk * case.a


def time_second(*operands):
  """Heads and time change places."""
  return tuple(u.swapaxes(1, 2) for u in operands)


def transposed(state):
  return state.swapaxes(-1, -2)


def channels_first(u):
  return u.swapaxes(1, 2)


def gru_of(case):
  return layers.GRU(
      case.x.shape[2], case.st0['h'].shape[1], rngs=nnx.Rngs(0)
  )


def gru_parameters(case):
  """Flax's cell lacks the hidden biases of r and z; PyTorch's has them."""
  nothing = jnp.zeros_like(case.par['b_hn'])
  hidden = [case.par.get(name, nothing) for name in ('b_hr', 'b_hz', 'b_hn')]
  return {
      'input.kernel': stacked(case, 'W_i{}', 'rzn'),
      'input.bias': stacked(case, 'b_i{}', 'rzn'),
      'hidden.kernel': stacked(case, 'W_h{}', 'rzn'),
      'hidden.bias': jnp.stack(hidden),
  }
