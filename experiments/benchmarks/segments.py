"""Measures what it costs to divide time: work and memory of layers on a mesh.

  python -m experiments.benchmarks.segments

The training step of each layer (the gradients of parameters and input) runs on
one virtual CPU device, and on several that have a segment of the sequence each.
All devices share the same cores, so the CPU time of all devices together is
compared, that is, the work. With a work of `f` on `n` real devices, a step
takes at best `f / n` of the time. Memory is that of the temporary arrays of a
device.
"""

import functools

from absl import flags
from experiments.benchmarks import layer_programs
from experiments.benchmarks import plots
from experiments.benchmarks import timing
from experiments.cli import drivers
import jax
from rnnzoo import layers
from rnnzoo.layers import base
from rnnzoo.training.processes import host
import tqdm

_NAMES = flags.DEFINE_multi_enum(
    'layers',
    sorted(n for n, u in layers.LAYERS.items() if not u.gathers_time),
    sorted(layers.LAYERS),
    'The layers to measure.',
)
_DEVICES = flags.DEFINE_multi_integer(
    'devices', [2, 4], 'The numbers of devices along time.', lower_bound=1
)
_LENGTH = flags.DEFINE_integer(
    'length', 4096, 'The length of the sequences.', lower_bound=1
)
_BATCH = flags.DEFINE_integer(
    'batch', 2, 'The number of sequences in a batch.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 256, 'The number of input features.', lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 5,
    'The number of times that each timing is repeated.', lower_bound=1,
)
_OUT = drivers.define_path(
    'out', 'experiments/results/segments.json',
    'The JSON file of the results; the plot is written beside it.',
)
flags.adopt_module_key_flags(plots)

_COLUMNS = {
    'layer': '{layer}',
    'devices': '{devices}',
    'CPU ms': '{cpu_ms:.0f}',
    'work': '{work:.2f}',
    'temporary MiB': '{mib:.1f}',
    'memory': '{memory:.2f}',
}


def measure(name):
  """Returns the rows of a layer: on one device, and on several."""
  layer = layer_programs.make(name, _FEATURES.value)
  shape = base.input_shape(layer)
  x = jax.random.normal(
      jax.random.key(0), (_BATCH.value, _LENGTH.value, *shape)
  )
  programs, calls = {}, {}
  for count in (1, *_DEVICES.value):
    mesh = jax.make_mesh(
        (count,), ('sequence',), (jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:count],
    )
    with jax.set_mesh(mesh):
      # New functions for each mesh, so that JAX traces them on this mesh.
      functions, params = layer_programs.programs_of(layer, False)
      params, inputs = jax.device_put(
          (params, x),
          tuple(
              jax.NamedSharding(mesh, spec)
              for spec in (jax.P(), jax.P(None, 'sequence'))
          ),
      )
      programs[count], _ = timing.compiled(
          functions['training'], params, inputs
      )
    calls[count] = functools.partial(programs[count], params, inputs)
  durations = timing.interleaved_medians(calls, _REPEATS.value)
  mib = {n: timing.temporary_bytes(p) / 2**20 for n, p in programs.items()}
  return [
      dict(
          layer=name, devices=count,
          length=_LENGTH.value, batch=_BATCH.value, features=_FEATURES.value,
          cpu_ms=duration.cpu_seconds * 1e3, seconds=duration.seconds,
          work=duration.cpu_seconds / durations[1].cpu_seconds,
          mib=mib[count], memory=mib[count] / mib[1],
      )
      for count, duration in durations.items()
  ]


def draw(record):
  """Draws work and memory of each layer against one device's."""
  rows = [row for row in record['rows'] if row['devices'] > 1]
  counts = sorted({row['devices'] for row in rows})
  keys = {r['layer']: r['work'] for r in rows if r['devices'] == counts[-1]}
  figure, panels = plots.subplots(
      1, 2, 'What it costs to divide time over devices',
      figsize=(10, 2.5 + 0.2 * len(keys)), sharey=True,
  )
  heights = plots.layers_axis(panels[0], keys)
  labels = dict(
      work='CPU time of all devices / that of one alone',
      memory='memory of a device / that of one alone',
  )
  for panel, (key, label) in zip(panels[0], labels.items()):
    for k, count in enumerate(counts):
      of = {r['layer']: r[key] for r in rows if r['devices'] == count}
      panel.plot(
          list(of.values()), [heights[name] for name in of], plots.MARKERS[k],
          color=plots.COLORS[k], label=f'{count} devices',
      )
    panel.axvline(1, color=plots.GRAY, linewidth=0.8)
    panel.set(xlim=(0, None), xlabel=label)
  plots.legend(figure, panels[0, 0])
  return figure


def main(argv):
  drivers.check_usage(argv)
  if plots.replotted(_OUT.value, draw):
    return
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(_DEVICES.value))
  timing.never_cache_compilation()
  host.pin_malloc()
  record = timing.environment()
  record['rows'] = []
  for name in tqdm.tqdm(_NAMES.value, unit='layer'):
    record['rows'] += measure(name)
    jax.clear_caches()
    timing.write(record, _OUT.value)
  timing.print_table(record['rows'], _COLUMNS)
  plots.save(record, _OUT.value, draw)


if __name__ == '__main__':
  drivers.run(main)
