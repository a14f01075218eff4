r"""What each layer is trained with on each task of the Long Range Arena.

  config = settings.use(config, 'listops', 'lru_polar')

The tables have the numbers of the papers, in their order. What belongs to the
model itself, such as depth and width, is in the presets
(`rnnzoo/models/presets`). The layers:

* `lru`, and below it the rows of the ablation in its paper: `dense_relu`,
  `dense_tanh`, `dense_linear`, `lru_real_imaginary`, `lru_polar`, `lru_stable`
  and `lru_ring`. Each takes the steps, the batch, the rates and the block of
  `lru`. https://arxiv.org/abs/2303.06349, tables 1, 2, 6, 7, 8 and 9.
* `s5`: the scripts of https://github.com/lindermanlab/S5.
* `s4` and `s4d`: the configs of https://github.com/state-spaces/s4.
* `min_gru` and `mamba`: their papers do not have these tasks. Ours: the blocks
  of their papers at the depth and width of the LRU, with its steps, batch,
  dropout and weight decay.
* Any other layer stands in the block of the LRU.

The learning rate. The LRU paper tuned it on a grid of powers of 2 and prints
one only, 0.004 for colour images, in its ablation. The others here, and those
of min_gru and mamba, are the middle of `RATES`. This is the sweep to make, and
the accuracy on validation is what to choose by:

  python -m experiments.sweep \
      --configs=experiments/configs/lra/listops.py:lru \
      --grid=optimizer.learning_rate=5e-4,1e-3,2e-3,4e-3,8e-3 \
      --workdir=runs/listops_rates

What differs from the papers:

* A norm stands after the last block. In the code of the LRU and of S5 there is
  none.
* The momentum of batch norms is 0.9. S5 has 0.95, but 0.9 on Pathfinder and
  Path-X.
* S5's cosine ends one warm-up before the last step; ours at the last step.
* Both directions of a bidirectional LRU have parameters of their own, and a
  linear map combines them. The paper does not say what it does.
* The paper gives no sizes of the dense RNNs. Here they have those of the LRU.
* The paper decays `exp(nu_log)` first and names no logarithm of the phase
  before the final LRU; here `lru_stable` and `lru_ring` have both.
* S4's code gives all channels one spectrum, and two on colour images. Here
  each channel has its own.
* Grey images are no task of the LRU paper: there it has the numbers of colour
  images. Colour images are no task of the S5 scripts: there it has those of
  grey images, and so have S4 and S4D.
"""

from experiments.configs import default
from ml_collections import ConfigDict
from rnnzoo import errors
from rnnzoo import models

# The largest learning rates to try where no paper prints one.
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)

# LRU, table 9: iterations, batch, factor of the learning rate, weight decay.
# Depth, H, N, dropout, and r_min and r_max of table 8 are in the presets.
LRU = dict(
    scifar=(180_000, 50, 0.25, 0.05),
    listops=(80_000, 32, 0.5, 0.05),
    text=(50_000, 32, 0.1, 0.05),
    retrieval=(100_000, 64, 0.5, 0.05),
    pathfinder=(500_000, 64, 0.25, 0.05),
    pathx=(250_000, 32, 0.25, 0.05),
)
LRU_RATES = dict(scifar=4e-3)  # Section C.2; else the middle of `RATES`.
# LRU, table 8: r_min and r_max without gamma. Path-X is at chance there, and
# its ring is not given; it has that with gamma here.
LRU_RINGS = dict(
    scifar=(0.9, 0.99),
    listops=(0.0, 1.0),
    text=(0.0, 0.9),
    retrieval=(0.5, 0.9),
    pathfinder=(0.9, 0.999),
    pathx=(0.999, 0.9999),
)
# The rows of the ablation that start on the unit disk: the layer, its options,
# and which parameters have the smaller rate and no weight decay.
_DENSE = dict(
    hidden_init='glorot_normal', use_bias=False, use_projection=True
)
_DENSE_SLOW = ('*.layer.*hidden.kernel', '*.layer.*input.kernel')
_DISK = dict(r_min=0.0, r_max=1.0, use_gamma=False)
LRU_ABLATION = dict(
    dense_relu=('elman', dict(_DENSE, activation='relu'), _DENSE_SLOW),
    dense_tanh=('elman', dict(_DENSE, activation='tanh'), _DENSE_SLOW),
    dense_linear=('elman', dict(_DENSE, activation='none'), _DENSE_SLOW),
    lru_real_imaginary=(
        'lru', dict(_DISK, parametrization='cartesian'), ('Lambda_*', 'B_*')
    ),
    lru_polar=(
        'lru', dict(_DISK, parametrization='polar'), ('nu', 'theta', 'B_*')
    ),
    lru_stable=('lru', _DISK, ('nu_log', 'theta_log', 'B_*')),
    lru_ring=('lru', dict(use_gamma=False), ('nu_log', 'theta_log', 'B_*')),
    lru=('lru', {}, ('nu_log', 'theta_log', 'gamma_log', 'B_*')),
)

# S5: batch, epochs, ssm_lr, lr_factor, weight decay, groups of the optimiser,
# warm-up in epochs. The number of steps needs that of the examples.
S5 = dict(
    listops=(50, 40, 1e-3, 3, 0.04, 'BfastandCdecay', 1),
    text=(50, 35, 1e-3, 4, 0.07, 'standard, dt_global', 0),
    retrieval=(32, 20, 1e-3, 2, 0.05, 'standard, dt_global', 1),
    image=(50, 250, 1e-3, 4.5, 0.07, 'BfastandCdecay', 1),
    pathfinder=(64, 200, 9e-4, 5, 0.03, 'standard', 1),
    pathx=(32, 75, 6e-4, 3, 0.06, 'BandCdecay', 1),
)
# Training examples. Those of retrieval follow from S4's 50,000 steps of 64 in
# 20 epochs; we know no exact number.
EXAMPLES = dict(
    listops=96_000, text=25_000, retrieval=160_000, image=45_000,
    pathfinder=160_000, pathx=160_000,
)
# What S5 trains with `ssm_lr` and without decay; all else is trained with
# `lr_factor * ssm_lr` and decays. `slow` has decay, but `ssm_lr`.
S5_GROUPS = {
    'standard': dict(still=('Lambda_*', 'log_step', 'norm', 'B_*')),
    'standard, dt_global': dict(still=('Lambda_*', 'norm', 'B_*')),
    'BandCdecay': dict(still=('Lambda_*', 'log_step', 'norm'), slow=('B_*',)),
    'BfastandCdecay': dict(still=('Lambda_*', 'log_step', 'norm')),
    'noBCdecay': dict(
        still=('Lambda_*', 'log_step', 'norm', 'B_*', 'C_*', 'C2_*', 'D')
    ),
}

# S4 and S4D: batch, learning rate, steps. The weight decay is 0.05, warm-up
# takes 10 % of the steps, and SSM parameters have a rate of 0.001.
S4 = dict(
    listops=(32, 0.01, 120_000),
    text=(16, 0.01, 50_000),
    retrieval=(64, 0.01, 50_000),
    image=(50, 0.01, 180_000),
    pathfinder=(64, 0.004, 500_000),
    pathx=(16, 0.001, 500_000),
)
S4_SLOW = dict(
    s4=('log_dt', 'log_A_real', 'A_imag', 'P_*', 'B_*'),
    s4d=('log_dt', 'log_A_real', 'A_imag', 'B_*'),
)

# Ours: what differs from the block of the LRU.
OWN_BLOCKS = dict(
    min_gru=dict(norm='rms', gate='none', mlp='geglu', conv_kernel=4),
    mamba=dict(norm='rms', norm_epsilon=1e-5, gate='none'),
)

# Tasks with a preset of their own, and those that borrow a row of a table.
NAMES = (
    'scifar', 'image', 'listops', 'text', 'retrieval', 'pathfinder', 'pathx'
)
_LIKE_LRU = dict(image='scifar')
_LIKE_S4_AND_S5 = dict(scifar='image')


def use(config: ConfigDict, task: str, layer: str) -> ConfigDict:
  """Sets the model, the optimiser, the batch size and the steps of a config.

  Args:
    config: The config, changed in place.
    task: One of `NAMES`.
    layer: A layer of the zoo, or a row of `LRU_ABLATION`.

  Returns:
    `config`.

  Raises:
    UserValueError: If there is no such task.
  """
  if task not in NAMES:
    raise errors.UserValueError(
        f'settings.use: there is no task {task!r}.'
        f'{errors.suggest(task, NAMES)} The tasks are {", ".join(NAMES)}.'
    )
  config.optimizer.name = 'adamw'
  config.optimizer.schedule = 'cosine'
  config.optimizer.clip = 0.0
  config.optimizer.options = ConfigDict(dict(b2=0.999))
  if layer == 's5':
    _use_s5(config, task)
  elif layer in S4_SLOW:
    _use_s4(config, task, layer)
  else:
    _use_lru(config, task, layer)
  return config


def _use_lru(config, task, layer):
  """Sets everything from the tables of the LRU, for any layer."""
  row = _LIKE_LRU.get(task, task)
  steps, batch, factor, decay = LRU[row]
  model = models.PRESETS[f'lru_{row}']
  if task == 'image':
    model = model.replace(in_features=1)
  options = dict(model.layer_options)
  if layer in LRU_ABLATION:
    name, changes, slow = LRU_ABLATION[layer]
    if name == 'elman':
      options = dict(hidden_features=options['state_features'])
    elif layer != 'lru':
      options.pop('max_phase', None)
      options['r_min'], options['r_max'] = LRU_RINGS[row]
    model = model.replace(layer=name, layer_options=options | changes)
    config.optimizer.groups = _groups(dict(
        slow=dict(parameters=slow, rate_factor=factor, decay=False)
    ))
  else:
    model = model.replace(
        layer=layer, layer_options={}, **OWN_BLOCKS.get(layer, {})
    )
    config.optimizer.recurrent_rate_factor = factor
  if layer in OWN_BLOCKS:
    model = model.replace(dropout_over_time=False)
    config.optimizer.recurrent_rate_factor = 1.0
    config.optimizer.clip = 1.0
  config.model = default.model(model)
  _set_training(config, steps, batch, decay, warmup=steps // 10)
  config.optimizer.learning_rate = (
      LRU_RATES[row] if layer in LRU_ABLATION and row in LRU_RATES
      else RATES[len(RATES) // 2]
  )
  config.optimizer.start_learning_rate = 1e-7
  config.optimizer.end_learning_rate = 1e-7


def _use_s5(config, task):
  row = _LIKE_S4_AND_S5.get(task, task)
  batch, epochs, rate, factor, decay, groups, warmup = S5[row]
  config.model = default.model(_in_colour(models.PRESETS[f's5_{row}'], task))
  epoch = EXAMPLES[row] // batch
  _set_training(config, epochs * epoch, batch, decay, warmup=warmup * epoch)
  config.optimizer.learning_rate = factor * rate
  config.optimizer.end_learning_rate = 0.0
  config.optimizer.groups = s5_groups(groups, factor)


def s5_groups(name: str, factor: float) -> ConfigDict:
  """Returns `optimizer.groups` of S5.

  Args:
    name: A key of `S5_GROUPS`.
    factor: `lr_factor`, what divides the learning rate of the groups.
  """
  return _groups({
      group: dict(
          parameters=parameters, rate_factor=1 / factor, decay=group == 'slow'
      )
      for group, parameters in S5_GROUPS[name].items()
  })


def _use_s4(config, task, layer):
  row = _LIKE_S4_AND_S5.get(task, task)
  batch, rate, steps = S4[row]
  config.model = default.model(
      _in_colour(models.PRESETS[f'{layer}_{row}'], task)
  )
  _set_training(config, steps, batch, 0.05, warmup=steps // 10)
  config.optimizer.learning_rate = rate
  config.optimizer.end_learning_rate = 0.0
  config.optimizer.groups = _groups(dict(slow=dict(
      parameters=S4_SLOW[layer], rate_factor=1e-3 / rate, decay=False
  )))


def _in_colour(model, task):
  return model.replace(in_features=3) if task == 'scifar' else model


def _groups(groups):
  """Adds the group of all other parameters, which decay, vectors too."""
  return ConfigDict(groups | dict(rest=dict(decay=True)))


def _set_training(config, steps, batch, decay, *, warmup):
  config.total_steps = steps
  config.batch_size = batch
  config.optimizer.weight_decay = decay
  config.optimizer.warmup_steps = warmup
