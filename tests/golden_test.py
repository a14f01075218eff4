"""Numbers made by running published implementations; `golden/manifest.json`.

One item for every `*.npz` in the directory that `RNNZOO_GOLDEN_DIR` names, or
in `tests/golden`. Outputs, final states and every stored gradient are compared:
in float32 within what the manifest suggests, in float64 within 1e-10.
"""

import ast
import inspect
import json
import os
import pathlib
import types

from absl.testing import parameterized
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo import ops

_DIRECTORY = pathlib.Path(
    os.environ.get('RNNZOO_GOLDEN_DIR')
    or pathlib.Path(__file__).parent / 'golden'
)


# Adapters: from a case's names to ours and back. `case` has `x` and the like,
# the inputs; `par` and `st0`, dictionaries; and `cfg`. They return outputs and
# final states by their names in the file.


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


def _read(path):
  with np.load(path) as file:
    return {key: file[key] for key in file.files}


def _run(adapter, data, dtype):
  """Runs an adapter on a file's arrays, and differentiates its loss.

  Args:
    adapter: One of the above.
    data: The arrays of a file.
    dtype: Of every floating number.

  Returns:
    Arrays by their names in the file: outputs, final states, gradients.
  """
  cfg = json.loads(str(data.get('cfg', '{}')))
  inputs = {
      key: u.astype(dtype) if u.dtype.kind == 'f' else u
      for key, u in data.items()
      if key.startswith(('in.', 'par.', 'st0.'))
  }
  floating = {k: u for k, u in inputs.items() if u.dtype.kind == 'f'}
  weights = {
      key[len('w.') :]: u.astype(dtype)
      for key, u in data.items()
      if key.startswith('w.')
  }

  def loss(floating):
    under = lambda prefix: {
        key[len(prefix) :]: u
        for key, u in (inputs | floating).items()
        if key.startswith(prefix)
    }
    case = types.SimpleNamespace(
        **under('in.'), par=under('par.'), st0=under('st0.'), cfg=cfg
    )
    outputs, states = adapter(case)
    value = sum((outputs[name] * w).sum() for name, w in weights.items())
    results = {f'out.{name}': u for name, u in outputs.items()}
    return value, results | {f'stT.{name}': u for name, u in states.items()}

  gradients, results = jax.jit(jax.grad(loss, has_aux=True))(floating)
  return results | {f'grad.{name}': u for name, u in gradients.items()}


def _problems(got, data, tolerance):
  """Lines on what a file holds and `got` lacks or has otherwise."""
  kinds = ('out.', 'stT.', 'grad.')
  wanted = {key: u for key, u in data.items() if key.startswith(kinds)}
  steepest = max(
      np.abs(u).max(initial=0)
      for key, u in wanted.items()
      if key.startswith('grad.')
  )
  lines = []
  for key, want in wanted.items():
    if key not in got:
      lines.append(f'{key}: missing')
      continue
    limit = tolerance['outputs']
    size = np.abs(want).max(initial=0)
    if key.startswith('grad.'):  # Some are zero but for rounding.
      limit = tolerance['gradients']
      size = max(size, 1e-3 * steepest)
    u = np.asarray(got[key], np.float64)
    if u.shape != want.shape:
      lines.append(f'{key}: {u.shape}, want {want.shape}')
      continue
    error = np.abs(u - want).max(initial=0) / size
    if not error <= limit:  # So that a NaN is a problem.
      lines.append(f'{key}: error {error:.2g}, tolerance {limit:.2g}')
  return lines


_FILES = sorted(_DIRECTORY.glob('*.npz'))


class GoldenTest(parameterized.TestCase):

  @parameterized.named_parameters((path.stem, path) for path in _FILES)
  def test_case(self, path):
    self.assertIn(path.stem, list(ADAPTERS), f'{path.name} has no adapter')
    manifest = json.loads((_DIRECTORY / 'manifest.json').read_text())
    data = _read(path)
    adapter = ADAPTERS[path.stem]
    got = _run(adapter, data, np.float32)
    tolerance = manifest[path.stem]['suggested_float32_tol']
    self.assertEmpty(_problems(got, data, tolerance), 'in float32')
    with jax.enable_x64(True):
      got = _run(adapter, data, np.float64)
    tolerance = dict(outputs=1e-10, gradients=1e-10)
    self.assertEmpty(_problems(got, data, tolerance), 'in float64')

  def test_there_are_cases(self):
    self.assertNotEmpty(_FILES, f'no *.npz in {_DIRECTORY}')

  def test_a_wrong_number_is_noticed(self):
    data = {
        'out.y': np.ones(3), 'stT.h': np.ones(3),
        'grad.in.x': np.array([1.0, 1000.0]), 'grad.par.b': np.zeros(2),
    }
    tolerance = dict(outputs=1e-6, gradients=1e-3)
    self.assertEmpty(_problems(data, data, tolerance))
    for key, value in (
        ('out.y', np.array([1, 1, 1.00001])), ('stT.h', np.full(3, np.nan)),
        ('grad.in.x', np.array([1.0, 1002.0])), ('grad.par.b', np.ones(2)),
        ('out.y', np.ones(4)),
    ):
      lines = _problems(data | {key: value}, data, tolerance)
      self.assertLen(lines, 1)
      self.assertStartsWith(lines[0], key)
    missing = {key: u for key, u in data.items() if key != 'grad.in.x'}
    self.assertLen(_problems(missing, data, tolerance), 1)


class AdaptersTest(parameterized.TestCase):

  @parameterized.parameters(sorted({a.__name__: a for a in ADAPTERS.values()}))
  def test_hold_no_mathematics(self, name):
    source = inspect.getsource(globals()[name])
    self.assertLessEqual(source.count('\n'), 20, 'an adapter is short')
    calls = []
    for node in ast.walk(ast.parse(source)):
      if isinstance(node, (ast.For, ast.While, ast.UnaryOp, ast.MatMult)):
        self.fail(f'{name}: {ast.unparse(node)}')
      if isinstance(node, ast.BinOp):  # Only names are put together.
        strings = [
            n for n in ast.walk(node)
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        ]
        self.assertNotEmpty(strings, f'{name}: {ast.unparse(node)}')
      if isinstance(node, ast.Call):
        calls.append(ast.unparse(node.func))
    allowed = (
        'layers.', 'ops.', 'nnx.Rngs', 'jnp.stack', 'jax.lax.complex', 'layer',
        'with_parameters', 'case.', 'stacked', 'total', 'parts', 'gru_',
        'complex_state',
    )
    for call in calls:
      self.assertStartsWith(call, allowed)
