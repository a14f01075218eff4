"""The contract of a layer (`rnnzoo.layers.base`), as a suite anyone can run.

    from rnnzoo import testing

    testing.check_layer(lambda rngs: MyLayer(6, rngs=rngs))

Every check compares two ways of getting the same numbers, values and gradients
alike. Parallel forms are held to a scan of the plain `step`, sequence starts
and padding to separate runs of the sequences without padding.
"""

from collections.abc import Callable, Iterable
import functools
import importlib.util
from typing import Any, NamedTuple
import zlib

from flax import nnx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from rnnzoo import layers
from rnnzoo.layers import base
from rnnzoo.layers import min_gru

scan_steps = base.scan_steps

# Largest difference, relative to the largest magnitude of the reference.
TOLERANCES = dict(bfloat16=3e-2, float16=4e-3, float32=2e-5, float64=1e-10)

# A layer joins the zoo by joining this list: `make(rngs)` gives a small one.
LAYERS = dict(
    aaren=lambda rngs: layers.Aaren(6, num_heads=2, rngs=rngs),
    cg_lru=lambda rngs: layers.CGLRU(8, num_heads=2, rngs=rngs),
    conv_lstm=lambda rngs: layers.ConvLSTM((3, 4, 2), 3, rngs=rngs),
    conv_s5=lambda rngs: layers.ConvS5((3, 4, 2), 4, rngs=rngs),
    elman=lambda rngs: layers.Elman(6, 5, rngs=rngs),
    griffin=lambda rngs: layers.GriffinBlock(6, 8, num_heads=2, rngs=rngs),
    gru=lambda rngs: layers.GRU(6, 5, rngs=rngs),
    lmu=lambda rngs: layers.LMU(6, 5, order=4, theta=10, rngs=rngs),
    hgrn=lambda rngs: layers.HGRN(6, lower_bound=0.3, rngs=rngs),
    lru=lambda rngs: layers.LRU(6, 5, rngs=rngs),
    lstm=lambda rngs: layers.LSTM(6, 5, rngs=rngs),
    mamba=lambda rngs: layers.Mamba(4, state_features=3, rngs=rngs),
    min_gru=lambda rngs: layers.MinGRU(6, rngs=rngs),
    min_lstm=lambda rngs: layers.MinLSTM(6, rngs=rngs),
    parallel_lmu=lambda rngs: layers.ParallelLMU(
        6, 5, order=4, theta=10, rngs=rngs
    ),
    rg_lru=lambda rngs: layers.RGLRU(6, num_heads=2, rngs=rngs),
    s4=lambda rngs: layers.S4(6, 4, rngs=rngs),
    s4d=lambda rngs: layers.S4D(6, 4, rngs=rngs),
    s5=lambda rngs: layers.S5(6, 8, blocks=2, rngs=rngs),
    sgru=lambda rngs: layers.SGRU(6, 5, rngs=rngs),
    rwkv4=lambda rngs: layers.RWKV4(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    rwkv4_channel_mix=lambda rngs: layers.RWKV4ChannelMix(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    slstm=lambda rngs: layers.SLSTM(
        6, 4, num_heads=2, recurrent_init='uniform', rngs=rngs
    ),
    slstm_block=lambda rngs: layers.SLSTMBlock(
        6, num_heads=2, recurrent_init='uniform', rngs=rngs
    ),
    tfc_sgru=lambda rngs: layers.TFCSGRU(6, 5, rngs=rngs),
    tt_gru=lambda rngs: layers.TTGRU(6, 4, rngs=rngs),
    tt_lstm=lambda rngs: layers.TTLSTM(6, 4, num_cores=3, rngs=rngs),
)

# The same with their options, and what wraps a layer.
VARIANTS = dict(
    aaren_without_projection=lambda rngs: layers.Aaren(
        6, num_heads=2, head_features=4, use_projection=False, use_bias=True,
        rngs=rngs,
    ),
    bidirectional=lambda rngs: layers.Bidirectional(
        layers.MinGRU(6, learn_initial_state=True, rngs=rngs),
        layers.LSTM(6, 5, rngs=rngs),
    ),
    conv_lstm_plain=lambda rngs: layers.ConvLSTM(
        (3, 4, 2), kernel_size=1, use_peepholes=False, rngs=rngs
    ),
    conv_s5_blocks=lambda rngs: layers.ConvS5(
        (5, 3, 2), 4, blocks=2, b_kernel_size=1, c_kernel_size=5,
        d_kernel_size=0, clip_eigs=False, rngs=rngs,
    ),
    elman_bfloat16=lambda rngs: layers.Elman(
        6, 5, dtype=jnp.bfloat16, rngs=rngs
    ),
    griffin_complex=lambda rngs: layers.GriffinBlock(
        6, 8, recurrence='cg_lru', num_heads=2, conv_kernel=3, rngs=rngs
    ),
    gru_reset_before=lambda rngs: layers.GRU(
        6, 5, reset_after=False, rngs=rngs
    ),
    lmu_trainable=lambda rngs: layers.LMU(
        6, 5, order=2, theta=10, discretization='euler', trainable=True,
        rngs=rngs,
    ),
    hgrn_complex=lambda rngs: layers.HGRN(
        6, expansion_factor=1.5, complex_state=True, norm='layer',
        use_bias=True, rngs=rngs,
    ),
    lru_without_gamma=lambda rngs: layers.LRU(
        6, 5, use_gamma=False, r_min=0.5, max_phase=0.3, rngs=rngs
    ),
    lru_bfloat16_parameters=lambda rngs: layers.LRU(
        6, 5, param_dtype=jnp.bfloat16, rngs=rngs
    ),
    mamba_bfloat16=lambda rngs: layers.Mamba(
        4,
        state_features=3,
        conv_kernel=2,
        use_conv_bias=False,
        use_bias=True,
        dtype=jnp.bfloat16,
        rngs=rngs,
    ),
    min_gru_expanded=lambda rngs: layers.MinGRU(
        6,
        expansion_factor=1.5,
        learn_initial_state=True,
        use_bias=False,
        rngs=rngs,
    ),
    min_gru_plain=lambda rngs: layers.MinGRU(
        6, activation_fn=min_gru.identity, use_projection=True, rngs=rngs
    ),
    min_lstm_unnormalized=lambda rngs: layers.MinLSTM(
        6,
        normalize=False,
        use_bias=False,
        learn_initial_state=True,
        rngs=rngs,
    ),
    min_lstm_bfloat16=lambda rngs: layers.MinLSTM(
        6, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs
    ),
    parallel_lmu_channels=lambda rngs: layers.ParallelLMU(
        6, 5, memory_features=3, order=2, theta=10, discretization='euler',
        memory_activation_fn=jnp.tanh, trainable=True, rngs=rngs,
    ),
    reverse=lambda rngs: layers.Reverse(layers.GRU(6, 5, rngs=rngs)),
    s4d_legs=lambda rngs: layers.S4D(
        6, 4, init='legs', output_map='none', rngs=rngs
    ),
    s4d_real=lambda rngs: layers.S4D(
        6, 4, init='real', discretization='bilinear', rngs=rngs
    ),
    tt_lstm_separate=lambda rngs: layers.TTLSTM(
        6, 4, form='separate', rngs=rngs
    ),
    s5_all_states=lambda rngs: layers.S5(
        6, 3, conj_sym=False, discretization='bilinear', clip_eigs=True,
        rngs=rngs,
    ),
    s5_bidirectional=lambda rngs: layers.S5(
        6, 4, bidirectional=True, c_init='complex_normal', rngs=rngs
    ),
    slstm_exponential=lambda rngs: layers.SLSTM(
        6,
        4,
        num_heads=1,
        forget_gate='exponential',
        recurrent_init='uniform',
        param_dtype=jnp.bfloat16,
        rngs=rngs,
    ),
)

_BATCH, _TIME, _PIECE, _SLOTS = 3, 12, 4, 4


def assert_close(got: Any, want: Any, dtype=None, *, tolerance=None) -> None:
  """Raises unless two trees hold the same numbers.

  The error of a leaf is its largest difference, relative to the largest
  magnitude in that leaf of `want`, or to a thousandth of that of the whole tree
  where the leaf is smaller. A NaN equals a NaN.

  >>> import jax.numpy as jnp
  >>> assert_close((jnp.ones(3), 1.0), (jnp.ones(3), 1.0))

  Args:
    got: A pytree of arrays.
    want: The reference, of the same structure and shapes.
    dtype: Whose row of `TOLERANCES` holds; the coarser of the two leaves' if
      `None`.
    tolerance: Instead of the table's.

  Raises:
    AssertionError: Naming each leaf that differs, its error and tolerance.
  """
  problems = _differences('', got, want, dtype=dtype, tolerance=tolerance)
  if problems:
    raise AssertionError('\n'.join(
        f'{p.what}: error {p.error:.2g}, tolerance {p.tolerance:.2g}'
        for p in problems
    ))


def check_layer(
    make_layer: Callable[[nnx.Rngs], base.RecurrentLayer],
    *,
    dtypes: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> None:
  """Holds a layer to every promise of `rnnzoo.layers.base`.

  Takes seconds, nearly all of them compilation. All checks run; what failed is
  printed as one table. A layer with the attribute `causal = False` is excused
  from `steps`, `chunks`, `causality` and `export`, nothing else.

  >>> from flax import nnx
  >>> from rnnzoo import layers
  >>> check_layer(lambda rngs: layers.MinGRU(4, rngs=rngs), checks=['shapes'])

  Args:
    make_layer: Makes the layer from an `nnx.Rngs`; a small one is quick.
    dtypes: Names of input dtypes; `float32`, `bfloat16` and, where
      `jax_enable_x64` is on, `float64` if `None`. What is not about numbers is
      checked with the first only.
    checks: Names from `CHECKS`; all if `None`.

  Raises:
    AssertionError: Naming the checks that failed.
    ValueError: If a name is unknown, or float64 is asked for without x64.
  """
  x64 = jax.config.jax_enable_x64
  if dtypes is None:
    dtypes = ['float32', 'bfloat16'] + (['float64'] if x64 else [])
  dtypes, checks = list(dtypes), list(CHECKS if checks is None else checks)
  for name, known, given in (
      ('dtypes', TOLERANCES, dtypes), ('checks', CHECKS, checks)
  ):
    if not set(given) <= set(known):
      raise ValueError(f'`{name}` must be among {list(known)}, got {given}.')
  if 'float64' in dtypes and not x64:
    raise ValueError(
        '`dtypes` has float64, which needs `with jax.enable_x64(True):`.'
    )
  failures = []
  for dtype in dtypes:
    try:
      case = Case(make_layer(nnx.Rngs(0)), dtype)
    except Exception as error:  # pylint: disable=broad-except
      failures.append(('call', dtype, _as_problem(error)))
      continue
    for name in (name for name in CHECKS if name in checks):
      if not case.causal and name in _CAUSAL_ONLY:
        continue
      if dtype != dtypes[0] and name not in _NUMERIC:
        continue
      try:
        problems = CHECKS[name](case)
      except Exception as error:  # pylint: disable=broad-except
        problems = [_as_problem(error)]
      failures += [(name, dtype, problem) for problem in problems]
  if failures:
    print(_table(failures))
    names = ', '.join(dict.fromkeys(name for name, _, _ in failures))
    raise AssertionError(f'The layer fails {names}; the table says where.')


class Result(NamedTuple):
  """What a layer gives, and what it pulls back from fixed cotangents."""

  y: jax.Array
  carry: Any
  d_parameters: Any
  d_x: jax.Array
  d_carry: list[jax.Array]


class Case:
  """A layer under test, inputs for it, and compiled runs of it.

  Attributes:
    layer: The layer; its parameters are float64 if the inputs are.
    causal: Whether it is.
    dtype: Dtype of the inputs.
    compute_dtype: That of the layer, or else of the inputs.
    params: Its parameters.
    x: Inputs `[B, T, D]`.
    initial: `initialize_carry`.
    carry: A state that some tokens left behind.
    d_y: A cotangent of the outputs.
    d_carry: A cotangent of the floating leaves of the final carry.
  """

  def __init__(self, layer, dtype):
    self.causal = getattr(layer, 'causal', True)
    self.dtype = jnp.dtype(dtype)
    self.compute_dtype = jnp.dtype(layer.dtype or dtype)
    self._graph, self.params, self._rest = nnx.split(layer, nnx.Param, ...)
    if self.dtype == jnp.float64:  # So that gradients have its digits, too.
      self.params = jax.tree.map(
          lambda p: p.astype(jnp.promote_types(p.dtype, jnp.float64)),
          self.params,
      )
    self.layer = nnx.merge(self._graph, self.params, self._rest)
    self.x = self.draw('x', (_BATCH, _TIME, *base.input_shape(layer)))
    self.initial = jax.device_get(
        self.layer.initialize_carry(_BATCH, self.compute_dtype)
    )
    carry, y = jax.eval_shape(self.layer, self.x, self.initial)
    self.d_y = self.draw('d_y', y.shape, y.dtype)
    self.d_carry = [
        self.draw(f'd_carry {i}', u.shape, u.dtype)
        for i, u in enumerate(_floating(carry))
    ]
    self._compiled = {}
    past = self.draw('past', self.x.shape)
    self.carry = self.run(whole, x=past, carry=self.initial).carry

  def draw(self, name, shape, dtype=None):
    """Normal numbers, the same for the same name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.standard_normal(shape).astype(dtype or self.dtype)

  def flag(self, name, probability):
    """Booleans `[B, T]`, the same for the same name."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    return random.random((_BATCH, _TIME)) < probability

  def run(
      self,
      form,
      reset=None,
      mask=None,
      *,
      x=None,
      carry=None,
      d_y=None,
      d_carry=None,
      params=None,
  ) -> Result:
    """Runs one of the forms below, and differentiates it.

    Args:
      form: A function of `(layer, x, carry, reset, mask)`, which gives
        `(carry, y)`. Compiled once for a case.
      reset: Passed to it.
      mask: Passed to it.
      x: Inputs; the case's if `None`, and so on.
      carry: The carry to start from.
      d_y: Cotangent of the outputs.
      d_carry: Cotangent of the final carry.
      params: Parameters.

    Returns:
      The `Result`, in NumPy's hands: here nothing but forms is compiled.
    """
    if form not in self._compiled:
      self._compiled[form] = jax.jit(
          functools.partial(self._run, form), compiler_options=_quick_options()
      )
    return jax.device_get(self._compiled[form](
        self.params if params is None else params,
        self.x if x is None else x,
        self.carry if carry is None else carry,
        reset,
        mask,
        self.d_y if d_y is None else d_y,
        self.d_carry if d_carry is None else d_carry,
    ))

  def _run(self, form, params, x, carry, reset, mask, d_y, d_carry):
    def forward(params, x, floating):
      layer = nnx.merge(self._graph, params, self._rest)
      new, y = form(layer, x, _refilled(carry, floating), reset, mask)
      return (y, _floating(new)), new

    (y, _), pull, new = jax.vjp(
        forward, params, x, _floating(carry), has_aux=True
    )
    return Result(y, new, *pull((d_y, d_carry)))


def whole(layer, x, carry, reset, mask):
  """The form under test: the layer's own call."""
  return layer(x, carry, reset=reset, mask=mask)


def steps(layer, x, carry, reset, mask):
  """Token by token."""
  return base.scan_steps(layer, carry, x, reset=reset, mask=mask)


def plain_steps(layer, x, carry, reset, mask):
  """The definition: `step` itself is told of neither flag."""
  initial = layer.initialize_carry(x.shape[0], layer.dtype or x.dtype)

  def body(carry, inputs):
    x_t, reset_t, mask_t = inputs
    entering = base.select(reset_t & mask_t, initial, carry)
    new, y = layer.step(entering, base.masked(x_t, mask_t))
    return base.select(mask_t, new, carry), base.masked(y, mask_t)

  by_time = lambda u: jnp.moveaxis(u, 1, 0)
  carry, y = jax.lax.scan(
      body, carry, (by_time(x), by_time(reset), by_time(mask))
  )
  return carry, jnp.moveaxis(y, 0, 1)


def chunks(layer, x, carry, reset, mask):
  """Piece by piece: none, one token, a random number of them, the rest."""
  random = np.random.default_rng(0)
  cut = int(random.integers(2, x.shape[1] - 2))
  lengths = random.permutation([0, 1, cut, x.shape[1] - 1 - cut])
  ys, start = [], 0
  for length in lengths.tolist():
    here = (slice(None), slice(start, start + length))
    carry, y = layer(
        x[here],
        carry,
        reset=None if reset is None else reset[here],
        mask=None if mask is None else mask[here],
    )
    ys, start = ys + [y], start + length
  return carry, jnp.concatenate(ys, axis=1)


def separate(layer, x, carry, index, used):
  """Each sequence in a run of its own, without padding or flags.

  Args:
    layer: The layer.
    x: `[B, T, D]`.
    carry: Enters the sequence in slot 0; the others start afresh.
    index: `[B, S, L]`, where the L tokens of each of S sequences lie.
    used: `[B, S]`, `False` where there is no such sequence.

  Returns:
    The carry that the last sequence of each row leaves, and `[B, T, D_out]`.
  """
  rows = jnp.arange(x.shape[0])[:, None, None]
  pieces = base.masked(x[rows, index], used)
  initial = layer.initialize_carry(x.shape[0], layer.dtype or x.dtype)
  slots = [base.select(used[:, 0], carry, initial)]
  slots += [initial] * (index.shape[1] - 1)
  flat = lambda u: u.reshape((-1,) + u.shape[2:])
  carries, y = layer(
      flat(pieces), jax.tree.map(lambda *u: flat(jnp.stack(u, axis=1)), *slots)
  )
  y = base.masked(y.reshape(index.shape + y.shape[2:]), used)
  for slot in range(index.shape[1]):
    last = jax.tree.map(lambda u: u[slot :: index.shape[1]], carries)
    carry = base.select(used[:, slot], last, carry)
  out = jnp.zeros(x.shape[:2] + y.shape[3:], y.dtype)
  return carry, out.at[rows, index].add(y)


def vmapped(layer, x, carry, reset, mask):
  """Row by row, under `jax.vmap`."""

  def one(*row):
    x, carry, reset, mask = jax.tree.map(lambda u: u[None], row)
    out = layer(x, carry, reset=reset, mask=mask)
    return jax.tree.map(lambda u: u[0], out)

  return jax.vmap(one)(x, carry, reset, mask)


def sharded(layer, x, carry, reset, mask):
  """On up to eight devices, by a `jax.shard_map` of the user's own.

  Every device gets the whole batch; each row is then taken from another device.
  """
  n = min(8, jax.device_count())
  mesh = jax.make_mesh(
      (n,), ('data',), axis_types=(jax.sharding.AxisType.Auto,),
      devices=jax.devices()[:n],
  )
  graph, state = nnx.split(layer)

  def local(state, *inputs):
    x, carry, reset, mask = inputs
    return nnx.merge(graph, state)(x, carry, reset=reset, mask=mask)

  inputs = jax.tree.map(
      lambda u: jnp.concatenate([u] * n), (x, carry, reset, mask)
  )
  split = jax.sharding.PartitionSpec('data')
  same = jax.sharding.PartitionSpec()
  out = jax.shard_map(
      local, mesh=mesh, in_specs=(same,) + (split,) * 4, out_specs=split
  )(state, *inputs)
  rows = np.arange(_BATCH)
  copies = np.linspace(0, n - 1, _BATCH).astype(int)
  return jax.tree.map(lambda u: u[copies * _BATCH + rows], out)


def check_steps(case):
  """One call equals a scan of `step`, also with flags `step` is not told of."""
  nothing = np.zeros((_BATCH, _TIME), bool)
  want = case.run(plain_steps, nothing, ~nothing)
  problems = _compare(case, 'call', case.run(whole), want)
  reset, mask = case.flag('reset', 0.3), case.flag('mask', 0.7)
  x = _with_nan(case.x, ~mask)
  want = case.run(plain_steps, reset, mask, x=x)
  for name, form in (('call', whole), ('step', steps)):
    got = case.run(form, reset, mask, x=x)
    problems += _compare(case, f'{name} with flags', got, want)
  return problems


def check_chunks(case):
  """The whole equals its pieces, run one after the other."""
  reset, present = case.flag('reset', 0.3), np.ones((_BATCH, _TIME), bool)
  want = case.run(whole, reset, present)
  return _compare(case, 'chunks', case.run(chunks, reset), want)


def check_reset(case):
  """A packed row equals separate runs, even if a NaN came before."""
  p = np.arange(_TIME).reshape(-1, _PIECE)
  index, used, reset, present = _layout(
      [[p[0], p[1], p[2]], [None, p[0], p[1], p[2]], [p[0], p[1], p[2]]]
  )
  return _against_separate(case, 'packed', index, used, reset, present) + [
      problem
      for piece in ([0] if case.causal else [0, 2])
      for problem in _against_separate(
          case, f'NaN in sequence {piece}', index, used, reset, present,
          poisoned=p[piece],
      )
  ]


def check_mask(case):
  """Absent steps are as if they were not there, whatever they hold."""
  p = np.arange(_TIME)
  inner = np.sort(np.random.default_rng(0).permutation(p)[:_PIECE])
  noise = case.flag('noise', 0.5)
  problems = []
  for name, slots in (
      ('padding', [[p[-_PIECE:]], [p[:_PIECE]], [inner]]),
      ('packed, padding', [[p[2:6], p[7:11]], [None, p[1:8:2], p[8:]], []]),
  ):
    index, used, reset, mask = _layout(slots)
    problems += _against_separate(
        case, name, index, used, reset | (noise & ~mask), mask
    )
  return problems


def check_causality(case):
  """Outputs do not depend on later inputs; gradients say the same."""
  past = np.arange(_TIME) < _TIME // 2
  d_y = case.d_y * _beside(past, case.d_y)
  d_carry = jax.tree.map(np.zeros_like, case.d_carry)
  x = np.where(_beside(past, case.x), case.x, -case.x)
  want = case.run(whole, d_y=d_y, d_carry=d_carry)
  got = case.run(whole, d_y=d_y, d_carry=d_carry, x=x)
  problems = _compare(
      case, 'other later inputs', got, want, at=past, carry=False
  )
  # Not exactly zero: a Fourier transform rounds everywhere alike.
  want = np.where(_beside(past, got.d_x), got.d_x, 0)
  return problems + _differences(
      'gradient of later inputs', got.d_x, want, case.compute_dtype
  )


def check_batch(case):
  """A row does not depend on the others."""
  first = lambda u: u[:1]
  other = lambda u: np.concatenate([u[:1], u[:0:-1]])
  sign = np.where(np.arange(_BATCH) > 0, -1, 1)[:, None]
  x = other(case.x) * _beside(sign, case.x)
  want, got = case.run(whole), case.run(
      whole, x=x.astype(case.dtype), carry=jax.tree.map(other, case.carry)
  )
  return [
      problem
      for name in ('y', 'carry', 'd_x', 'd_carry')
      for problem in _differences(
          f'{name} of row 0',
          jax.tree.map(first, getattr(got, name)),
          jax.tree.map(first, getattr(want, name)),
          case.compute_dtype,
      )
  ]


def check_transforms(case):
  """`jax.vmap` and `jax.shard_map` give the numbers of `jax.jit`."""
  reset, mask = case.flag('reset', 0.3), case.flag('mask', 0.7)
  want = case.run(whole, reset, mask)
  return [
      problem
      for name, form in (('vmap', vmapped), ('shard_map', sharded))
      for problem in _compare(case, name, case.run(form, reset, mask), want)
  ]


def check_eager(case):
  """Without `jax.jit` all is the same; `jax.eval_shape` knew it beforehand."""
  if case.causal:
    name, call, x = 'step', case.layer.step, case.x[:, 0]
    args, token = (case.carry, x), 0
  else:
    name, call, x = 'call', case.layer, case.x
    args, token = (x, case.carry), slice(None)
  announced = jax.eval_shape(call, *args)
  got = call(*args)
  types = lambda tree: jax.tree.map(lambda u: (u.shape, u.dtype), tree)
  if types(announced) != types(got):
    return [_wrong(f'{name} {types(got)}, announced {types(announced)}')]
  want = case.run(whole).y[:, token]
  return _differences(f'{name}: outputs', got[1], want, case.compute_dtype)


def check_grad(case):
  """Gradients are what small changes do: parameters, inputs, carry at once."""
  at = jax.device_get((case.params, case.x, _floating(case.carry)))
  leaves, structure = jax.tree.flatten(at)
  dtypes = [case.compute_dtype, *(u.dtype for u in leaves)]
  if min(jnp.finfo(dtype).bits for dtype in dtypes) < 32:
    return []  # Small changes drown there.
  direction = jax.tree.unflatten(structure, [
      case.draw(f'direction {i}', u.shape, u.dtype)
      for i, u in enumerate(leaves)
  ])
  result = case.run(whole)
  gradient = result.d_parameters, result.d_x, result.d_carry
  parts = np.concatenate([
      (_numbers(u) * _numbers(v)).real.ravel()
      for u, v in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
  ])
  # What the difference gets wrong: a third derivative, rounding, and bends.
  size, tolerance = (3e-4, 3e-2) if case.dtype == jnp.float32 else (1e-5, 1e-5)
  ends = []
  for sign in (1, -1):
    params, x, carry = jax.tree.map(
        lambda u, v: (u + sign * size * v).astype(u.dtype), at, direction
    )
    carry = _refilled(case.carry, carry)
    end = case.run(whole, x=x, params=params, carry=carry)
    ends.append((end.y, *_floating(end.carry)))
  rise = sum(
      ((_numbers(a) - _numbers(b)) * _numbers(w)).real.sum()
      for a, b, w in zip(*ends, (case.d_y, *case.d_carry))
  )
  error = abs(rise / (2 * size) - parts.sum()) / np.linalg.norm(parts)
  return [_Problem('slope', error, tolerance)] if not error < tolerance else []


def check_export(case):
  """`jax.export` of `step`: for every platform, to bytes, back, and run."""
  graph, state = nnx.split(case.layer)
  leaves, structure = jax.tree.flatten((state, case.carry))

  def step(leaves, x):
    state, carry = jax.tree.unflatten(structure, leaves)
    carry, y = nnx.merge(graph, state).step(carry, x)
    return jax.tree.leaves(carry), y

  exported = jax.export.export(jax.jit(step), platforms=_PLATFORMS)(
      leaves, case.x[:, 0]
  )
  if importlib.util.find_spec('flatbuffers'):  # An extra of ours and of JAX.
    exported = jax.export.deserialize(exported.serialize())
  serve = jax.jit(exported.call, compiler_options=_quick_options())
  fixed = leaves[: len(leaves) - len(jax.tree.leaves(case.carry))]
  carry, ys = jax.tree.leaves(case.carry), []
  for t in range(_TIME):
    carry, y = serve(fixed + carry, case.x[:, t])
    ys.append(y)
  want = case.run(whole)
  return _differences(
      'outputs', np.stack(ys, axis=1), want.y, case.compute_dtype
  ) + _differences(
      'final carry', carry, jax.tree.leaves(want.carry), case.compute_dtype
  )


def check_lengths(case):
  """No token leaves the carry alone; one token is a step."""
  layer, x, carry = case.layer, case.x, case.carry

  def run(x, carry):
    none, flag = x[:, :0], jnp.ones((_BATCH, 0), bool)
    empty = [layer(none, carry), layer(none, carry, reset=flag, mask=flag)]
    step = layer.step(carry, x[:, 0]) if case.causal else None
    return empty, layer(x[:, :1], carry), step

  run = jax.jit(run, compiler_options=_quick_options())
  empty, (last, y), step = run(x, carry)
  problems = []
  for new, nothing in empty:
    problems += _differences('carry after T = 0', new, carry, tolerance=0)
    if nothing.shape != (_BATCH, 0, *base.output_shape(layer)):
      problems.append(_wrong(f'outputs {nothing.shape} for T = 0'))
  if step is not None:
    problems += _differences(
        'T = 1', (last, y[:, 0]), step, case.compute_dtype
    )
  return problems


def check_long(case):
  """Values and gradients are finite over 512 tokens."""
  x = case.draw('long', (_BATCH, 512, *case.x.shape[2:]))
  d_y = case.draw(
      'd_long', (_BATCH, 512, *case.d_y.shape[2:]), case.d_y.dtype
  )
  result = case.run(whole, x=x, d_y=d_y)
  return [
      _wrong(f'{name}{_path(path)} not finite over 512 tokens')
      for name in Result._fields
      for path, u in _leaves(getattr(result, name))
      if not np.isfinite(_numbers(u)).all()
  ]


def check_dtypes(case):
  """Outputs have the compute dtype, states float32 at least."""
  dtypes = ['float32', 'bfloat16']
  dtypes += ['float64'] if jax.config.jax_enable_x64 else []
  problems = []
  for dtype in dtypes:
    compute = jnp.dtype(case.layer.dtype or dtype)
    x = jax.ShapeDtypeStruct(case.x.shape, dtype)
    calls = {'call': jax.eval_shape(case.layer, x)}
    if case.causal:
      carry = calls['call'][0]
      calls['step'] = jax.eval_shape(
          case.layer.step,
          carry,
          jax.ShapeDtypeStruct(x.shape[:1] + x.shape[2:], dtype),
      )
    initial = jax.eval_shape(
        lambda: case.layer.initialize_carry(_BATCH, compute)
    )
    calls['initialize_carry'] = initial, None
    for name, (carry, y) in calls.items():
      if y is not None and y.dtype != compute:
        problems.append(_wrong(f'{name}: {dtype} in, {y.dtype} out'))
      problems += [
          _wrong(f'{name}: carry{_path(path)} {u.dtype} for {dtype}')
          for path, u in _leaves(carry)
          if not _is_state(u, compute, alone=len(_leaves(carry)) == 1)
      ]
  return problems


def check_shapes(case):
  """Sizes are as announced; a carry has one shape, batch first, whatever T."""
  layer, problems = case.layer, []
  types = lambda tree: jax.tree.map(lambda u: (u.shape, u.dtype), tree)
  for batch in (1, _BATCH):
    want = jax.eval_shape(
        lambda: layer.initialize_carry(batch, case.compute_dtype)
    )
    for path, u in _leaves(want):
      if u.shape[:1] != (batch,):
        problems.append(_wrong(
            f'carry{_path(path)} {u.shape} for B = {batch}'
        ))
    if len(_leaves(want)) > 1 and not hasattr(want, '_fields'):
      problems.append(_wrong('a carry of several arrays is a NamedTuple'))
    for time in (0, 1, 5):
      carry, y = jax.eval_shape(layer, case.x[:batch, :time])
      if types(carry) != types(want):
        problems.append(_wrong(f'carry {types(carry)}, want {types(want)}'))
      if y.shape != (batch, time, *base.output_shape(layer)):
        problems.append(_wrong(f'outputs {y.shape} for B, T = {batch}, {time}'))
  return problems


def check_errors(case):
  """What does not fit raises `ValueError`."""
  layer, x, carry = case.layer, case.x, case.carry
  flag = np.zeros(x.shape[:2], bool)
  step = (carry, x[:, 0])
  calls = {
      'x of rank 2': lambda: layer(x[0]),
      'x of another size': lambda: layer(x[..., 1:]),
      'integer x': lambda: layer(x.astype(np.int32)),
      'carry of another batch': lambda: layer(
          x, jax.tree.map(lambda u: u[1:], carry)
      ),
      'carry of another dtype': lambda: layer(
          x, jax.tree.map(lambda u: u.real.astype(jnp.float16), carry)
      ),
      'carry of another structure': lambda: layer(x, {'carry': carry}),
      'reset of another length': lambda: layer(x, reset=flag[:, 1:]),
      'integer reset': lambda: layer(x, reset=flag.astype(int)),
      'mask of another length': lambda: layer(x, mask=flag[:, 1:]),
      'integer mask': lambda: layer(x, mask=flag.astype(int)),
  }
  if case.causal:
    calls |= {
        'step: x of rank 3': lambda: layer.step(carry, x),
        'step: x of another size': lambda: layer.step(carry, x[:, 0, 1:]),
        'step: reset of rank 2': lambda: layer.step(*step, reset=flag),
        'step: mask of rank 2': lambda: layer.step(*step, mask=flag),
    }
  else:
    calls |= {'step of a non-causal layer': lambda: layer.step(*step)}
  problems = []
  for name, call in calls.items():
    try:
      jax.eval_shape(call)
      problems.append(_wrong(f'{name}: no error'))
    except ValueError:
      pass
    except Exception as error:  # pylint: disable=broad-except
      problems.append(_wrong(f'{name}: {type(error).__name__}'))
  return problems


CHECKS = dict(
    shapes=check_shapes,
    dtypes=check_dtypes,
    errors=check_errors,
    steps=check_steps,
    chunks=check_chunks,
    reset=check_reset,
    mask=check_mask,
    causality=check_causality,
    batch=check_batch,
    lengths=check_lengths,
    transforms=check_transforms,
    eager=check_eager,
    grad=check_grad,
    export=check_export,
    long=check_long,
)
_NUMERIC = ('steps', 'chunks', 'reset', 'mask')  # Run for every dtype.
_CAUSAL_ONLY = ('steps', 'chunks', 'causality', 'export')
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class _Problem(NamedTuple):
  """One comparison that failed."""

  what: str
  error: float
  tolerance: float


def _wrong(what):
  return _Problem(what, np.inf, 0.0)


def _as_problem(error):
  lines = str(error).strip().splitlines() or ['']
  return _wrong(f'{type(error).__name__}: {lines[0]}')


def _table(failures):
  rows = [('check', 'input', 'what', 'error', 'tolerance')]
  for name, dtype, problem in failures:
    what, error, tolerance = problem
    rows.append((name, dtype, what, f'{error:.2g}', f'{tolerance:.2g}'))
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = ('  '.join(u.ljust(w) for u, w in zip(r, widths)) for r in rows)
  return '\n'.join(line.rstrip() for line in lines)


def _layout(rows):
  """Says where sequences lie.

  Args:
    rows: For each row, up to `_SLOTS` arrays of `_PIECE` positions, or `None`;
      that in slot 0 goes on from the given carry, the others start a sequence.

  Returns:
    `(index, used, reset, mask)`: the first two for `separate`, `[B, S, L]` and
    `[B, S]`, and the flags for a packed row, `[B, T]`.
  """
  index = np.zeros((_BATCH, _SLOTS, _PIECE), int)
  used = np.zeros((_BATCH, _SLOTS), bool)
  reset, mask = np.zeros((2, _BATCH, _TIME), bool)
  for row, slots in enumerate(rows):
    for slot, positions in enumerate(slots):
      if positions is not None:
        index[row, slot], used[row, slot] = positions, True
        mask[row, positions] = True
        reset[row, positions[0]] = slot > 0
  return index, used, reset, mask


def _against_separate(case, name, index, used, reset, mask, poisoned=None):
  """Compares packed rows with runs of their sequences, NaN wherever it may be.

  Args:
    case: The case.
    name: What to call it.
    index: Where sequences lie.
    used: Which there are.
    reset: Their starts.
    mask: Their tokens.
    poisoned: Positions of a sequence full of NaN, not to be compared.

  Returns:
    The problems.
  """
  x = _with_nan(case.x, ~mask)
  given, d_carry, at = case.carry, case.d_carry, np.ones(_TIME, bool)
  # In and out of a non-causal layer, the carry belongs to the first sequence of
  # a row and to its last: with one sequence a row it can be compared.
  carry = case.causal or used.sum(1).max() <= 1
  if not carry:
    given = case.initial
    d_carry = jax.tree.map(np.zeros_like, case.d_carry)
  if poisoned is not None:
    at[poisoned] = False
    x = _with_nan(x, ~at)
    if carry:
      nan = lambda u: np.full_like(u, np.nan) if _is_floating(u) else u
      given = jax.tree.map(nan, case.carry)
  want = case.run(separate, index, used, x=x, carry=given, d_carry=d_carry)
  got = case.run(whole, reset, mask, x=x, carry=given, d_carry=d_carry)
  problems = _compare(
      case, name, got, want, at=at, carry=carry, parameters=poisoned is None
  )
  if poisoned is None:
    problems += _zero(f'{name}: outputs of absent steps', got.y[~mask])
    problems += _zero(f'{name}: gradient of absent steps', got.d_x[~mask])
  return problems


def _compare(case, name, got, want, *, at=None, carry=True, parameters=True):
  """The differences of two results, at the positions `at` `[T]` if given."""
  at = slice(None) if at is None else at
  pairs = {
      'outputs': (got.y[:, at], want.y[:, at]),
      'gradient of x': (got.d_x[:, at], want.d_x[:, at]),
  }
  if carry:
    pairs['final carry'] = got.carry, want.carry
    pairs['gradient of carry'] = got.d_carry, want.d_carry
  if parameters:
    pairs['gradient of'] = got.d_parameters, want.d_parameters
  return [
      problem
      for what, (g, w) in pairs.items()
      for problem in _differences(f'{name}: {what}', g, w, case.compute_dtype)
  ]


def _with_nan(x, where):
  """`x` `[B, T, D]` with NaN at the positions `where` `[B|1, T]` or `[T]`."""
  return np.where(_beside(where, x), np.asarray(np.nan, x.dtype), x)


def _beside(flag, u):
  """`flag` `[B|1, T|1]` or `[T]` with the axes of a token of `u` beside."""
  return flag.reshape(flag.shape + (1,) * (u.ndim - 2))


def _zero(what, u):
  error = np.abs(_numbers(u)).max(initial=0)
  return [] if error == 0 else [_Problem(what, float(error), 0.0)]


def _differences(name, got, want, via=None, *, dtype=None, tolerance=None):
  """The leaves of two trees that differ by more than they may.

  Args:
    name: What to call them.
    got: A tree.
    want: The reference.
    via: A dtype that the numbers went through, coarser perhaps than their own.
    dtype: Whose row of the table holds, whatever the leaves are.
    tolerance: Instead of the table's.

  Returns:
    The problems.
  """
  structure = jax.tree.structure(want)
  if jax.tree.structure(got) != structure:
    return [_wrong(f'{name}: {jax.tree.structure(got)}, want {structure}')]
  problems = []
  largest = max(map(_size, jax.tree.leaves(want)), default=0)
  for (path, w), g in zip(_leaves(want), jax.tree.leaves(got)):
    what, g, w = name + _path(path), np.asarray(g), np.asarray(w)
    if g.shape != w.shape:
      problems.append(_wrong(f'{what}: {g.shape}, want {w.shape}'))
      continue
    limit = tolerance
    if limit is None:
      rows = [g.dtype, w.dtype, via or w.dtype] if dtype is None else [dtype]
      limit = max(map(_tolerance, rows)) if _is_floating(w) else 0.0
    scale = max(_size(w), 1e-3 * largest, np.finfo(np.float32).tiny)
    error = _gap(g, w) / scale
    if error > limit:
      problems.append(_Problem(what, float(error), limit))
  return problems


def _gap(got, want):
  """The largest difference; a NaN is as far as can be from any other number."""
  got, want = _numbers(got), _numbers(want)
  same = (got == want) | (np.isnan(got) & np.isnan(want))
  gap = np.abs(np.where(same, 0, got) - np.where(same, 0, want))
  return np.where(np.isnan(gap), np.inf, gap).max(initial=0)


def _size(u):
  """The largest finite magnitude."""
  u = np.abs(_numbers(u))
  return u[np.isfinite(u)].max(initial=0)


def _tolerance(dtype):
  """The row of the table; complex numbers have that of their parts."""
  if not jnp.issubdtype(dtype, jnp.inexact):
    return 0.0
  return TOLERANCES[jnp.finfo(dtype).dtype.name]


def _numbers(u):
  """`u` in NumPy's widest dtype."""
  u = np.asarray(u)
  wide = np.complex128 if np.iscomplexobj(u) else np.float64
  return u.astype(wide)


@functools.cache
def _quick_options():
  """Compiler options for programs that run once: a quarter of the time on CPU.

  Which of them exist depends on the version; each is tried.
  """
  options = {}
  if jax.default_backend() == 'cpu':
    for name, value in (
        ('xla_backend_optimization_level', 0),
        ('xla_cpu_use_fusion_emitters', False),
    ):
      try:
        jax.jit(lambda: 0, compiler_options={name: value})()
        options[name] = value
      except jax.errors.JaxRuntimeError:
        pass
  return options


def _path(path):
  return jax.tree_util.keystr(path)


def _leaves(tree):
  return jax.tree_util.tree_flatten_with_path(tree)[0]


def _is_floating(u):
  return jnp.issubdtype(u.dtype, jnp.inexact)


def _floating(tree):
  """The leaves that can be differentiated."""
  return [u for u in jax.tree.leaves(tree) if _is_floating(u)]


def _refilled(tree, floating):
  """`tree` with its floating leaves replaced."""
  floating = iter(floating)
  return jax.tree.map(
      lambda u: next(floating) if _is_floating(u) else u, tree
  )


def _is_state(u, compute, alone):
  """Whether the dtype of a leaf of a carry is one the contract allows.

  States are float32 at least. Tails of convolutions and caches, which have a
  time axis of their own, keep the compute dtype; integers and bools may be.
  """
  if not _is_floating(u):
    return True
  if jnp.finfo(u.dtype).dtype == base.state_dtype(compute):
    return True
  return u.dtype == compute and len(u.shape) > 2 and not alone
