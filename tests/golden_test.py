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
import jax
import numpy as np
from tests import golden_adapters
from tests import golden_adapters_delta
from tests import golden_adapters_mamba3
from tests import golden_adapters_mixers

ADAPTERS = (
    golden_adapters.ADAPTERS
    | golden_adapters_delta.ADAPTERS
    | golden_adapters_mamba3.ADAPTERS
    | golden_adapters_mixers.ADAPTERS
)

_DIRECTORY = pathlib.Path(
    os.environ.get('RNNZOO_GOLDEN_DIR')
    or pathlib.Path(__file__).parent / 'golden'
)


# What is compared, where it is not all: Mamba's authors keep the last K inputs
# of the convolution, of which only K - 1 are read again.
_PARTS = {'mamba__block': {'stT.conv': np.s_[..., 1:]}}

# Angles that may differ by whole turns.
_ANGLES = ('stT.angle',)


# Options that no adapter passes on: the layer has this form only, or the arrays
# say it. A file with another value needs an adapter that reads the option.
_ASSUMED = dict(
    activation=('g',), block_len_used=(8,), c=(8.0,), clip_eigs=(False,),
    damping=(False, True), discretization=('zoh, dt=1', 'IMEX'),
    forget_gate=('exp (log-sigmoid stabilised)',),
    g=('log of the forget gate',), gamma_h=('1-2^(-5-h)',),
    gate_order=('i,f,z,o',),
    gates=(
        'h', 'rzn', 'ifgo', 'A, B, b: z, r, candidate',
        'A, B, b: f, o, c; C: f, o',
    ),
    gelu=('exact erf',),
    glu=('first half * sigmoid(second half)',), group_norm_eps=(64e-5,),
    keep_order=(False, True), kk_norm_floor=(1e-12,), l2norm_eps=(1e-6,),
    layer_idx=(3,), levels=(7,), max_sqrt_gradient=(1000,),
    norm_weight=('1 + w',),
    normalize=(False,), num_heads=(2, 3), num_layers=(10,), pp0=(-1e30, -1e38),
    rate_h=(
        '2^(-8h/H) (1 - layer_idx/(num_layers-1+1e-5) + 1e-5), h = 1..H',
    ),
    rotary_style=('half split',), scale=(0.5,), step_rescale=(1.0,),
    temporal_width=(4,),
    time_decay=('already -exp(raw)',),
    w=('-exp(w_raw)', 'log decay (<0)'),
)


class _Options(dict):
  """The `cfg` of a file, which remembers what of it was read."""

  def __init__(self, options):
    super().__init__(options)
    self.unread = set(options)

  def __getitem__(self, key):
    self.unread.discard(key)
    return super().__getitem__(key)

  def get(self, key, default=None):
    return self[key] if key in self else default


def _read(path):
  with np.load(path) as file:
    parts = _PARTS.get(path.stem, {})
    return {key: file[key][parts.get(key, ...)] for key in file.files}


def _run(adapter, data, dtype):
  """Runs an adapter on a file's arrays, and differentiates its loss.

  Args:
    adapter: One of the above.
    data: The arrays of a file.
    dtype: Of every floating number.

  Returns:
    Arrays by their names in the file: outputs, final states, gradients.
  """
  cfg = _Options(json.loads(str(data.get('cfg', '{}'))))
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
  for key in sorted(cfg.unread):
    if dict.__getitem__(cfg, key) not in _ASSUMED.get(key, ()):
      raise ValueError(f'{adapter.__name__} ignores {key}.')
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
    if key in _ANGLES:
      u, want = (np.stack([np.cos(v), np.sin(v)]) for v in (u, want))
      size = 1.0
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

  def test_an_option_that_an_adapter_ignores_is_noticed(self):
    data = {
        'cfg': json.dumps({'c': 7.0}), 'in.x': np.ones(3), 'w.y': np.ones(3)
    }
    ignore = lambda case: ({'y': case.x}, {})
    with self.assertRaisesRegex(ValueError, 'ignores c'):
      _run(ignore, data, np.float32)
    _run(ignore, data | {'cfg': json.dumps({'c': 8.0})}, np.float32)

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

  @parameterized.named_parameters(
      sorted({a.__name__: a for a in ADAPTERS.values()}.items())
  )
  def test_hold_no_mathematics(self, adapter):
    name, source = adapter.__name__, inspect.getsource(adapter)
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
        'complex_state', 'channels_first', 'split_heads', 'transposed',
        'time_second', 'raw_decay', 'rank_one', 'state._asdict', 'getattr',
        'names.', 'delta_memory.', 'kda_lib.', 'comba_lib.',
        'gated_delta_net2.', 'gated_delta_product.', 'steps_of_tokens',
        'sizes', 'into_heads', 'low_rank_maps', 'head_decay_maps', 'run',
        'linear_maps', 'bound_logit', 'log_decay', 'short_conv_parameters',
        'rotary_share', 'gated_attention_parameters',
        'mamba3.', 'one_rank', 'rotation', 'carry_of', 'input_maps',
        'states_of',
    )
    for call in calls:
      self.assertStartsWith(call, allowed)
