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


ADAPTERS = dict(
    causal_conv1d__segments=causal_conv1d,
    elman=elman,
    gru=gru,
    gru__flax_lengths=gru_flax_lengths,
    gru__flax_lengths_reverse=gru_flax_lengths,
    gru__reset_before=gru_reset_before,
    linrec_complex=linrec_complex,
    linrec_complex__long=linrec_complex,
    linrec_complex__rev=linrec_complex,
    linrec_real=linrec_real,
    linrec_real__long=linrec_real,
    linrec_real__rev=linrec_real,
    lru=lru,
    lru__h0=lru,
    lstm=lstm,
    mingru=min_gru,
    mingru__h0=min_gru,
    minlstm=min_lstm,
    minlstm__h0=min_lstm,
)


# What adapters share: names and axes, but for one sum.


def with_parameters(layer, values):
  """`layer` with other parameters, all of them, by dotted path."""
  graph, state = nnx.split(layer)
  flat = dict(nnx.to_flat_state(state))
  shapes = {
      '.'.join(map(str, path)): value[...].shape for path, value in flat.items()
  }
  assert shapes == {name: u.shape for name, u in values.items()}, shapes
  for path, value in flat.items():
    flat[path] = value.replace(values['.'.join(map(str, path))])
  return nnx.merge(graph, nnx.from_flat_state(flat))


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
