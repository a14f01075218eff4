r"""Times a step of decision models that act, on this machine.

  python -m experiments.benchmarks.decision_steps

The models are those of `experiments/configs/decisions/hopper.py`, with their
initial parameters. `carried` is one step with the state carried through the
episode; for attention the state is a cache of the whole episode, 1,000 steps.
`reread` reads the last 20 steps again, as the Decision Transformer acts, and
`whole`, for attention, the whole episode. The environment is not part of it.
"""

import functools

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import acting
from experiments.cli import drivers
from experiments.configs.decisions import hopper
from flax import nnx
import jax
import jax.numpy as jnp
from rnnzoo import models
from rnnzoo.models.decision_model import num_states

_LAYERS = flags.DEFINE_multi_string(
    'layers', ['min_gru', 'lru', 'attention'], 'The layers to measure.'
)
_BATCH = flags.DEFINE_multi_integer(
    'batch', [1, 20], 'The numbers of episodes side by side.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 20, 'The number of rounds.', lower_bound=1
)
_OUT = drivers.define_path(
    'out', 'experiments/results/decisions/hopper_steps_cpu.json',
    'The JSON file of the results.',
)

EPISODE = 1000
_IN, _ACTION = 16, 3  # Of Hopper.
_COLUMNS = {
    'layer': '{layer}',
    'way': '{way}',
    'episodes': '{batch}',
    'ms': '{milliseconds:.3f}',
    'state, bytes': '{state_bytes}',
}


def make_model(layer, memory):
  """Returns the model of the config, with its initial parameters.

  Args:
    layer: Its layer.
    memory: The steps that attention sees.
  """
  config = hopper.get_config(layer).model
  config.in_features, config.out_features = _IN, _ACTION
  if layer == 'attention':
    config.layer_options.window = memory
  model = models.DecisionModel(
      models.ModelConfig.from_dict(config.to_dict()), rngs=nnx.Rngs(0)
  )
  assert num_states(model.config) == 11
  return model


def make_calls():
  """Returns a call for each way to act, and the bytes of its state."""
  calls, sizes = {}, {}
  for layer in _LAYERS.value:
    for batch in _BATCH.value:
      x = jnp.ones((batch, _IN))
      ways = dict(carried=0, reread=20)
      if layer == 'attention':
        ways['whole'] = EPISODE
      for way, window in ways.items():
        model = make_model(layer, window or EPISODE)
        policy = acting.Policy(model, 'reread' if window else way, window)
        carry = policy.start(batch)
        if window:  # Full, as after so many steps.
          carry = carry[0], jnp.ones_like(carry[1])
        key = layer, way, batch
        calls[key] = functools.partial(policy, carry, x)
        sizes[key] = sum(u.nbytes for u in jax.tree.leaves(carry)) // batch
  return calls, sizes


def main(argv):
  drivers.check_usage(argv)
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  calls, sizes = make_calls()
  medians = timing.interleaved_medians(calls, _REPEATS.value)
  rows = [
      dict(
          layer=layer, way=way, batch=batch,
          milliseconds=1e3 * duration.seconds,
          cpu_milliseconds=1e3 * duration.cpu_seconds,
          state_bytes=sizes[layer, way, batch],
      )
      for (layer, way, batch), duration in medians.items()
  ]
  timing.print_table(rows, _COLUMNS)
  timing.save(
      dict(timing.environment(), episode=EPISODE, rows=rows), _OUT.value
  )


if __name__ == '__main__':
  drivers.run(main)
