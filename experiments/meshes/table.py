"""The table of results, and what it must satisfy."""

from experiments.meshes import cases
import numpy as np
from rnnzoo import errors
from rnnzoo import layers

TOLERANCE = 1e-5
# The largest part of the state that every device may hold whole: vectors, and
# small maps that all heads need. In large models this part is far smaller.
WHOLE = 0.06
_ONE, _TIME = '1,1,1,1', '1,1,1,8'
_HEAD = """\
# Every mesh of eight devices against one device

Written by `python -m experiments.meshes`: {steps} training steps in float32 on
8 virtual CPU devices. A field holds the largest relative difference between the
losses and those of one device, and then the part of the training state
(parameters and the optimiser's moments) that a device holds.

"""
_MODELS = """\
## Models, on all meshes

Losses with the same letter in a column are equal bit by bit.

"""
_LAYERS = """\
## Layers, a block of each with a language model around it

The last column says what a device computes on a mesh that splits time: a
segment of the sequence, or the whole sequence, gathered from all devices.

"""


def difference(result, one) -> float:
  """Returns the largest relative difference from the losses of one device."""
  losses, want = np.array(result['losses']), np.array(one['losses'])
  return float(np.abs(losses / want - 1).max())


def whole_part(mesh: str, result) -> float:
  """Returns the part of the state that every device holds whole."""
  _, fsdp, model, _ = map(int, mesh.split(','))
  if fsdp * model == 1:
    return 0.0
  share = result['state_bytes'] / result['all_state_bytes']
  return (share - 1 / (fsdp * model)) / (1 - 1 / (fsdp * model))


def gathers_time(by_mesh) -> bool:
  """Returns whether devices gather whole sequences where time is split."""
  if _TIME not in by_mesh:
    return False
  moved = by_mesh[_TIME]['activations_moved']
  # To describe a segment takes far less: a few numbers per row and channel.
  return max(moved.values(), default=0) >= cases.BATCH * cases.TIME


def markdown(results) -> str:
  """Returns the tables."""
  models = {n: r for n, r in results.items() if n.startswith('model ')}
  rest = {n: r for n, r in results.items() if n not in models}
  parts = [_HEAD.format(steps=cases.STEPS)]
  if models:
    meshes = list(dict.fromkeys(m for r in models.values() for m in r))
    letters = {name: _letters(by_mesh) for name, by_mesh in models.items()}
    rows = [
        [mesh, *(
            f'{_field(by_mesh, mesh)} {letters[name].get(mesh, "")}'
            for name, by_mesh in models.items()
        )]
        for mesh in sorted(meshes, reverse=True) if mesh != _ONE
    ]
    parts += [_MODELS, _table(['data,fsdp,model,sequence', *models], rows)]
  if rest:
    meshes = list(dict.fromkeys(m for r in rest.values() for m in r))
    meshes = [mesh for mesh in meshes if mesh != _ONE]
    rows = [
        [name, *(_field(by_mesh, mesh) for mesh in meshes),
         _time(by_mesh)]
        for name, by_mesh in rest.items()
    ]
    parts += [_LAYERS, _table(['layer', *meshes, 'time'], rows)]
  return '\n'.join(part.rstrip('\n') + '\n' for part in parts)


def check(results):
  """Raises `UserError` unless every result is as it must be."""
  wrong = []
  for name, by_mesh in results.items():
    for mesh, result in by_mesh.items():
      far = difference(result, by_mesh[_ONE])
      if not far <= TOLERANCE:
        wrong.append(f'losses of {name} on {mesh} differ by {far:.1e}')
      whole = whole_part(mesh, result)
      if not whole <= WHOLE:
        wrong.append(
            f'{100 * whole:.0f} % of the state of {name} on {mesh} is whole on '
            'every device'
        )
    layer = layers.LAYERS.get(name)
    if layer and gathers_time(by_mesh) > layer.gathers_time:
      wrong.append(f'{name} gathers whole sequences and does not say so')
  if wrong:
    raise errors.UserError('; '.join(wrong) + '.')


def _field(by_mesh, mesh):
  if mesh not in by_mesh:
    return ''
  result = by_mesh[mesh]
  share = result['state_bytes'] / result['all_state_bytes']
  return f'{difference(result, by_mesh[_ONE]):.0e}, {100 * share:.1f} %'


def _time(by_mesh):
  if _TIME not in by_mesh:
    return ''
  return 'gathered' if gathers_time(by_mesh) else 'segments'


def _letters(by_mesh):
  """Names the sets of meshes whose losses are the same bit by bit."""
  digests = [r['digest'] for m, r in sorted(by_mesh.items(), reverse=True)]
  shared = [d for d in dict.fromkeys(digests) if digests.count(d) > 1]
  return {
      mesh: chr(ord('a') + shared.index(r['digest']))
      for mesh, r in by_mesh.items() if r['digest'] in shared
  }


def _table(head, rows):
  lines = [head, ['---'] * len(head), *rows]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
