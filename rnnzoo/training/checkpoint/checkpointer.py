"""Checkpoints: written in the background by Orbax, verified by digests of ours.

The layout is a stable format which plain Orbax reads as well:

```
<workdir>/checkpoints/<step>/state/           PyTree item: the arrays
<workdir>/checkpoints/<step>/meta/metadata    JSON item: the record below
<workdir>/bad_checkpoints/<step>/             damaged ones, moved aside
```

`state` is a nested dictionary with string keys, whatever containers the saved
tree had: `opt_state[0].mu['w']` lies under `opt_state`, `'0'`, `mu`, `w`. Nodes
without arrays (such as optax's `EmptyState`) leave no trace. `meta` holds

```
format   1
step     the step, again
meta     what the caller gave: config, vocabulary, ...
metric   the validation loss, or null
leaves   {'params/w': {dtype, shape, digest}, ...}
sha256   of this record's canonical JSON without this entry
```

Orbax notices a missing or truncated file, but restores flipped bits as if
nothing had happened; hence the digests. The digest of an array is the sum,
modulo 2^64, of a hash of (position in the whole array, bits) over its elements,
so it is the same however the array is spread over devices and processes.

The latest `keep` checkpoints are kept, and the one with the lowest metric. A
checkpoint is written under a temporary name and renamed when it is complete,
and older ones are deleted after that: killing the process harms nothing.
"""

import contextlib
import errno
import gc
import hashlib
import json
import logging as python_logging
import math
import os
import re
import sys
import time
from typing import Any
import warnings

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from rnnzoo import errors
from rnnzoo import filenames
from rnnzoo.training import files
from rnnzoo.training import memory
from rnnzoo.training import records
from rnnzoo.training.checkpoint import digests
from rnnzoo.training.checkpoint import leaks
from rnnzoo.training.checkpoint import paths
from rnnzoo.training.processes import multihost

FORMAT = 1

# A checkpoint that is being deleted should be gone after so long.
_DELETING_SECONDS = 10

_ORBAX = os.path.dirname(ocp.__file__)

# Errors of the system that tell of damage, where only another checkpoint helps.
_DAMAGE = (errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)


def _from_orbax(error: BaseException | None, traceback) -> bool:
  while traceback is not None:
    if traceback.tb_frame.f_code.co_filename.startswith(_ORBAX):
      return True
    traceback = traceback.tb_next
  # Errors of TensorStore, Orbax's engine, arrive without a frame of either.
  return 'OCDBT' in str(error) or str(error) == 'Event loop is closed'


def _hide_logs(record) -> bool:
  """Keeps Orbax's own log lines, dozens a save, for `--verbosity=1`.

  Its errors are hidden too: they come with a traceback, and what they say is
  raised from `save`, `wait` and `restore` in one sentence.
  """
  _, error, traceback = record.exc_info or (None, None, None)
  quiet = record.pathname.startswith(_ORBAX)
  if record.name == 'asyncio':
    quiet = _from_orbax(error, traceback)
  return not quiet or logging.level_debug()


def _hide_leftovers(unraisable, show=sys.unraisablehook) -> None:
  """Keeps quiet about the other arrays when reading or writing one has failed.

  Orbax abandons their coroutines and closes the event loop that TensorStore
  still reports to, and Python prints a traceback for each, here or in asyncio's
  log. All other errors go to the hook that was there before.
  """
  if not _from_orbax(unraisable.exc_value, unraisable.exc_traceback):
    show(unraisable)


logging.get_absl_logger().addFilter(_hide_logs)
python_logging.getLogger('asyncio').addFilter(_hide_logs)
sys.unraisablehook = _hide_leftovers
leaks.mend_orbax()
# The same coroutines again, where Python collects them later than we do.
warnings.filterwarnings(
    'ignore', r"coroutine '.*async_(de)?serialize.*' was never awaited"
)


def _drop_leftovers() -> None:
  """Also drops what Orbax has not even begun, which Python warns of."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    gc.collect()


def _named_leaves(tree: Any) -> dict[str, Any]:
  """Flattens a tree to `{'params/w': leaf}`."""
  leaves = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not name or name in leaves:
      raise ValueError(
          '`state` must be a dictionary whose paths, joined by "/", are all '
          f'different; got {name!r} ' + ('twice.' if name else 'as a path.')
      )
    if paths.leads_out(name):
      raise ValueError(f'`state` has a path that leads out of it: {name!r}.')
    if not isinstance(getattr(leaf, 'dtype', None), np.dtype):
      raise ValueError(
          f'`state` must hold arrays of numbers, got {leaf!r} at {name}.'
      )
    leaves[name] = leaf
  return leaves


def _nested(leaves: dict[str, Any]) -> dict[str, Any]:
  """Turns `{'params/w': leaf}` into `{'params': {'w': leaf}}`."""
  tree = {}
  for name, leaf in leaves.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


def _filled(leaves: dict[str, Any]) -> dict[str, Any]:
  """The leaves with elements: Orbax refuses the others, `meta` knows them."""
  return {name: leaf for name, leaf in leaves.items() if leaf.size}


def _restored_leaves(tree, targets) -> list[jax.Array]:
  """What Orbax returned for `targets`, in their order, none left out."""
  found, leaves = _named_leaves(tree), []
  for name, target in targets.items():
    if not target.size:
      found[name] = jnp.zeros(
          target.shape, target.dtype, device=target.sharding
      )
    if not isinstance(found[name], jax.Array):  # After damage to `_METADATA`.
      raise ValueError(f'{name} is left out')
    leaves.append(found[name])
  return leaves


def _checksum(record: dict[str, Any]) -> str:
  rest = {key: value for key, value in record.items() if key != 'sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _reason(error: BaseException) -> str:
  """What went wrong, in a few words."""
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  text = str(error).strip()
  # TensorStore ends a long story with the part that tells.
  system_error = re.search(r'([^:]+) \[os_error_code', text)
  if system_error:
    return system_error[1].strip()
  line = f'{type(error).__name__}: {text}'.splitlines()[0]
  return line if len(line) <= 80 else line[:77] + '...'


def _holds(leaf, saved: str) -> bool:
  """Whether an array like `leaf` holds all of one of the dtype `saved`.

  A moving average or a moment that was once kept in bfloat16 becomes float32.
  """
  if leaf.dtype.name == saved:
    return True
  narrow = saved in ('bfloat16', 'float16')
  return narrow and leaf.dtype == np.float32


def _differences(leaves, saved, *, partial: bool) -> list[str]:
  """Says, a line a leaf, where a tree and a saved one differ."""
  found = []
  for name, leaf in leaves.items():
    here = f'{leaf.dtype.name}{list(leaf.shape)}'
    there = saved.get(name)
    if there is None:
      found.append(f'{name} ({here}) is not in the checkpoint')
    elif there['shape'] != [*leaf.shape] or not _holds(leaf, there['dtype']):
      there = f'{there["dtype"]}{there["shape"]}'
      found.append(f'{name} is {there} in the checkpoint and {here} here')
  if not partial:
    found += [
        f'{name} is only in the checkpoint' for name in saved
        if name not in leaves
    ]
  return found


def _on_the_first_device() -> jax.sharding.Sharding:
  """Where an array goes of which nobody says where.

  In each of several processes to its own first device; while it is one array of
  all processes, it is on one device of each.
  """
  if jax.process_count() == 1:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
  first = {}
  for device in jax.devices():
    first.setdefault(device.process_index, device)
  mesh = jax.sharding.Mesh(np.array(list(first.values())), ('process',))
  return jax.NamedSharding(mesh, jax.P())


class _DamagedError(Exception):
  """A checkpoint that cannot be trusted; the message says why."""


class _LatestAndBest:
  """An Orbax preservation policy: the latest `keep`, and the best.

  Orbax's own `BestN` would do but for its metrics file, which nothing protects:
  a damaged one keeps the manager from opening at all.
  """

  def __init__(self, keep: int, metrics: dict[int, float]):
    self._keep = keep
    self._metrics = metrics  # Shared with the `Checkpointer`, which fills it.

  def best(self, steps) -> int | None:
    """The step of the lowest metric; of equal ones the first."""
    known = [(self._metrics[s], s) for s in steps if s in self._metrics]
    return min(known)[1] if known else None

  def should_preserve(self, checkpoints, *, context):
    """Says for each of `checkpoints` whether it stays."""
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self._keep :], self.best(steps)}
    return [step in kept for step in steps]


class Checkpointer:
  """Saves and restores training states in one directory.

  Example::

    with Checkpointer(workdir / 'checkpoints') as checkpoints:
      checkpoints.save(10, state, {'config': config}, best_metric=1.7)
      step, state, meta = checkpoints.restore(abstract_state)

  In a run of several processes all of them make the same calls.
  """

  def __init__(self, directory, *, keep: int = 3, readonly: bool = False):
    """Opens a directory of checkpoints and removes leftovers of killed saves.

    Args:
      directory: Where the checkpoints lie; made if missing.
      keep: How many of the latest checkpoints stay, besides the best.
      readonly: Change nothing on disk, neither now nor when a checkpoint turns
        out to be damaged. For everything that does not train.

    Raises:
      ValueError: If `keep` is less than 1.
      errors.UserError: If the directory cannot be made.
    """
    if keep < 1:
      raise ValueError(f'`keep` must be at least 1, got {keep}.')
    directory = epath.Path(filenames.absolute(directory))
    self.directory = directory
    self.bad_directory = directory.parent / f'bad_{directory.name}'
    self._readonly = readonly
    self._metrics = {}
    self._policy = _LatestAndBest(keep, self._metrics)
    self._saving = None
    try:
      if directory.exists() and not directory.is_dir():
        raise NotADirectoryError('not a directory')
      if not readonly and '://' not in str(directory):
        # The directory itself may be a link, to a larger disk.
        for path in (self.bad_directory, *directory.glob('*')):
          files.check_own(path)
      self._list(self._open)
    except OSError as e:
      raise errors.UserError(
          f'Cannot use {directory} for checkpoints: {_reason(e)}.'
      ) from e

  def __enter__(self):
    return self

  def __exit__(self, error_type, error, traceback):
    try:
      self.close()
    except errors.UserError as e:
      if error is None:
        raise
      logging.warning('%s', e)  # The first error is the one to report.

  def save(
      self,
      step: int,
      state: Any,
      meta: dict[str, Any],
      *,
      best_metric: float | None = None,
  ) -> bool:
    """Starts saving a state and returns while it is being written.

    The arrays may be donated or deleted as soon as this returns. A step that is
    already saved is not written again, only its metric is noted.

    Args:
      step: Its step, after those already saved.
      state: A tree of arrays, of any dtype and sharding.
      meta: A dictionary that JSON can hold.
      best_metric: The validation loss, if known: the lowest is never deleted.

    Returns:
      Whether a save was started.

    Raises:
      ValueError: If `step` is before the latest one, or `state` or `meta` hold
        what cannot be saved.
      errors.UserError: If this save, or the one before, could not be written.
    """
    if self._readonly:
      raise ValueError('This checkpointer was opened with `readonly=True`.')
    leaves = _named_leaves(state)
    for name, leaf in leaves.items():
      if not isinstance(leaf, jax.Array):
        raise ValueError(
            f'`state` must hold JAX arrays, got {type(leaf)} at {name}.'
        )
    if best_metric is not None:
      best_metric = float(best_metric)
      best_metric = best_metric if math.isfinite(best_metric) else None
    self.wait()
    if step in self.all_steps():
      if best_metric is not None:
        self._metrics[step] = best_metric
        self._rewrite(step, metric=best_metric)
      return False
    if self.all_steps() and step < self.latest_step():
      raise ValueError(
          f'`step` must be after the latest checkpoint, {self.latest_step()}, '
          f'got {step}.'
      )
    sums = multihost.sum_over_processes(
        [digests.local_digest(x) for x in leaves.values()]
    )
    record = {
        'format': FORMAT,
        'step': step,
        'meta': meta,
        'metric': best_metric,
        'leaves': {
            name: {
                'dtype': leaf.dtype.name,
                'shape': list(leaf.shape),
                'digest': f'{digest:016x}',
            }
            for (name, leaf), digest in zip(leaves.items(), sums)
        },
    }
    try:
      record = json.loads(json.dumps(record))  # Tuples become lists now.
    except TypeError as e:
      raise ValueError(f'`meta` must be JSON: {e}.') from e
    record['sha256'] = _checksum(record)
    if best_metric is not None:
      self._metrics[step] = best_metric
    self._saving = step
    args = ocp.args.Composite(
        state=ocp.args.PyTreeSave(_nested(_filled(leaves))),
        meta=ocp.args.JsonSave(record),
    )
    try:
      # `force`, or Orbax declines in silence by rules of its own.
      self._manager.save(step, args=args, force=True)
    except Exception as e:
      raise self._save_failed(e) from e
    return True

  def note(self, step: int, meta: dict[str, Any]) -> None:
    """Gives a checkpoint that is there another `meta`.

    Args:
      step: Which one.
      meta: As for `save`.

    Raises:
      errors.UserError: If it cannot be written; the old one is intact then.
    """
    self.wait()
    self._rewrite(step, meta=meta)

  def forget_metrics(self) -> None:
    """Takes their metrics from all checkpoints: none of them is the best.

    Raises:
      errors.UserError: If that cannot be written.
    """
    self.wait()
    for step in self.metrics:
      self._rewrite(step, metric=None)
    self._metrics.clear()

  def wait(self) -> None:
    """Blocks until the save under way is on disk.

    Raises:
      errors.UserError: If it could not be written, for instance on a full disk.
        The checkpoints before it are intact, and the next save may succeed.
    """
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      raise self._save_failed(e) from e
    self._saving = None

  def close(self) -> None:
    """Waits, then frees Orbax's threads; nothing else may be called after."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def all_steps(self) -> list[int]:
    """The saved steps in ascending order, one being written included."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The latest saved step, or `None`."""
    return max(self.all_steps(), default=None)

  @property
  def metrics(self) -> dict[int, float]:
    """The metrics by step, of the saved steps that have one."""
    return {s: self._metrics[s] for s in self.all_steps() if s in self._metrics}

  def best_step(self) -> int | None:
    """The step of the lowest metric, or `None` where no step has one."""
    return self._policy.best(self.all_steps())

  def restore(
      self,
      abstract_state: Any,
      *,
      step: int | None = None,
      best: bool = False,
      partial: bool = False,
  ) -> tuple[int, Any, dict[str, Any]]:
    """Restores the latest checkpoint that is sound.

    A damaged one is moved to `bad_directory` (not where `readonly`), a warning
    says so, and the one before is tried. That does not depend on the sharding:
    a state saved on 8 devices restores on one. Where float32 is asked for and
    bfloat16 or float16 was saved, the array is widened.

    Args:
      abstract_state: Arrays or `jax.ShapeDtypeStruct`s in the saved structure.
        Their `sharding` says where the result goes; the first device if `None`.
      step: Restore this one and no other; nothing is moved.
      best: Try the one with the lowest metric before the latest.
      partial: Restore only the arrays that `abstract_state` has, for instance
        `{'params': ...}` without the optimiser's.

    Returns:
      `(step, state, meta)`: the step it found, the arrays in the structure of
      `abstract_state`, and what `save` was given as `meta`.

    Raises:
      errors.UserFileNotFoundError: If there is no checkpoint, or not this one.
      errors.UserError: If the checkpoint holds other arrays or shapes, or none
        is sound.
    """
    leaves = _named_leaves(abstract_state)

    def read(candidate):
      record = self._read_record(candidate)
      wrong = _differences(leaves, record['leaves'], partial=partial)
      if wrong:
        more = f', and {len(wrong) - 3} more' if len(wrong) > 3 else ''
        raise errors.UserValueError(
            f'Checkpoint {candidate} in {self.directory} belongs to another '
            f'model or optimizer: {"; ".join(wrong[:3])}{more}.'
        )
      restored = self._read_leaves(candidate, leaves, record['leaves'])
      structure = jax.tree.structure(abstract_state)
      state = jax.tree.unflatten(structure, restored)
      return candidate, state, record['meta']

    return self._first_sound(read, step, best, move=not self._readonly)

  def restore_meta(
      self, *, step: int | None = None, best: bool = False
  ) -> tuple[int, dict[str, Any]]:
    """Reads `(step, meta)` as `restore` would, moving nothing."""

    def read(candidate):
      return candidate, self._read_record(candidate)['meta']

    return self._first_sound(read, step, best, move=False)

  def _open(self) -> None:
    if not self._readonly and jax.process_index() == 0:
      # Orbax would clean up in a thread that fails if the program ends at once.
      for path in self.directory.glob('*.orbax-checkpoint-tmp*'):
        with contextlib.suppress(OSError):  # A save given up may still write.
          path.rmtree(missing_ok=True)
    self._manager = ocp.CheckpointManager(
        self.directory,
        options=ocp.CheckpointManagerOptions(
            create=not self._readonly, preservation_policy=self._policy
        ),
        item_names=('state', 'meta'),
    )

  def _list(self, find) -> None:
    """Learns which checkpoints there are, and which of them is the best.

    Args:
      find: Makes the manager look. Where a run deletes one just then, it may
        fail, or miss one that is new; a reader looks again.
    """
    tries = 5 if self._readonly and self.directory.is_dir() else 1
    for i in range(tries):
      try:
        find()
        find = self._manager.reload
        if self.all_steps():
          break
      except FileNotFoundError:
        if i == tries - 1:
          raise
      time.sleep(0.02 * (i < tries - 1))
    self._metrics.clear()
    for step in self.all_steps():
      try:
        metric = self._read_record(step)['metric']
      except _DamagedError:  # `restore` deals with it, if it comes to that.
        continue
      if metric is not None:
        self._metrics[step] = metric

  def _save_failed(self, error: Exception) -> errors.UserError:
    """Gives up the save under way; returns the error to raise."""
    step, self._saving = self._saving, None
    with contextlib.suppress(Exception):  # The same error again.
      self._manager.close()
    _drop_leftovers()
    # Only the disk knows now which checkpoints there are.
    self._list(self._open)
    kept = f'The latest one kept is {self.latest_step()}.'
    return errors.UserError(
        f'Cannot save checkpoint {step} in {self.directory}: '
        f'{_reason(error)}. {kept if self.all_steps() else ""}'.rstrip()
    )

  def _rewrite(self, step: int, **entries) -> None:
    """Changes entries of a checkpoint's record, in one moment."""
    record = self._read_record(step) | entries
    record['sha256'] = _checksum(record)
    if jax.process_index() == 0:
      path = self.directory / str(step) / 'meta' / 'metadata'
      try:
        files.write_text(path, json.dumps(record))
      except OSError as e:
        raise errors.UserError(
            f'Cannot note {", ".join(entries)} in checkpoint {step} in '
            f'{self.directory}: {_reason(e)}.'
        ) from e

  def _first_sound(self, read, step, best, *, move):
    """Returns `read` of the first checkpoint that is not damaged."""
    self.wait()
    damaged = set()
    while steps := self._to_try(step, best, damaged):
      candidate = steps[0]
      try:
        return read(candidate)
      except _DamagedError as e:
        reason = str(e)
      if self._vanished(candidate):
        continue
      damaged.add(candidate)
      if step is not None:
        raise errors.UserError(
            f'Checkpoint {step} in {self.directory} is damaged: {reason}.'
        )
      moved = f' Moved it to {self._set_aside(candidate)}.' if move else ''
      logging.warning(
          'Checkpoint %d is damaged: %s.%s Trying the next.',
          candidate, reason, moved
      )
    if not damaged:
      number = '' if step is None else f' {step}'
      raise errors.UserFileNotFoundError(
          f'There is no checkpoint{number} in {self.directory}.'
      )
    where = f', now in {self.bad_directory}' if move else ''
    raise errors.UserError(
        f'No checkpoint in {self.directory} can be read: all {len(damaged)} '
        f'are damaged{where}.'
    )

  def _to_try(self, step, best, damaged) -> list[int]:
    """Returns the steps that may be restored, the first choice first."""
    steps = [s for s in self.all_steps()[::-1] if s not in damaged]
    if best and self.best_step() is not None:
      steps.sort(key=lambda s: s != self.best_step())  # Stable: rest as before.
    if step is not None:
      steps = [step] if step in steps else []
    return steps

  def _vanished(self, step: int) -> bool:
    """Whether the run that writes here has deleted a checkpoint meanwhile.

    Only a reader asks: it finds half of a checkpoint, or none, where a run
    keeps few. It then knows the checkpoints that there are now.
    """
    if not self._readonly or jax.process_count() > 1:
      return False  # Several processes must all try the same ones.
    known, start = set(self.all_steps()), time.monotonic()
    while True:
      self._list(self._manager.reload)
      if not (self.directory / str(step)).exists():
        return True
      # One is deleted only after another is complete.
      grows = not known.issuperset(self.all_steps())
      if time.monotonic() - start > (_DELETING_SECONDS if grows else 0.1):
        return False
      time.sleep(0.02)

  def _read_record(self, step: int) -> dict[str, Any]:
    path = self.directory / str(step) / 'meta' / 'metadata'
    try:
      record = records.parse_checkpoint(path.read_bytes())
    except FileNotFoundError as e:
      raise _DamagedError('meta/metadata is missing') from e
    except OSError as e:
      if e.errno in _DAMAGE:
        raise _DamagedError(f'meta/metadata: {_reason(e)}') from e
      raise errors.UserError(f'Cannot read {path}: {_reason(e)}.') from e
    except ValueError as e:
      raise _DamagedError('meta/metadata is not what was written') from e
    if record['sha256'] != _checksum(record) or record['step'] != step:
      raise _DamagedError('meta/metadata is not what was written')
    for name in record['leaves']:
      if paths.leads_out(name):
        raise _DamagedError(f'meta/metadata names {name!r}')
    if record['format'] != FORMAT:
      raise errors.UserValueError(
          f'{path} has format {record["format"]}; this version of rnnzoo reads '
          f'format {FORMAT}.'
      )
    return record

  def _read_leaves(self, step, leaves, saved) -> list[jax.Array]:
    """Restores the named leaves and compares their digests."""
    first = _on_the_first_device()
    targets = {
        name: jax.ShapeDtypeStruct(
            leaf.shape,
            jnp.dtype(saved[name]['dtype']),
            sharding=getattr(leaf, 'sharding', None) or first,
        )
        for name, leaf in leaves.items()
    }
    tree = _nested(_filled(targets))
    args = ocp.args.PyTreeRestore(
        item=tree,
        restore_args=ocp.checkpoint_utils.construct_restore_args(tree),
        partial_restore=True,
    )
    restored, problem = None, 'another process cannot read it'
    with warnings.catch_warnings():  # See `_drop_leftovers`.
      warnings.simplefilter('ignore', RuntimeWarning)
      try:
        paths.check_metadata(self.directory / str(step) / 'state')
        # Without the manager, whose barriers would wait for ever, or for other
        # calls', where a file is damaged that only some processes read.
        read = ocp.PyTreeCheckpointHandler().restore(
            self.directory / str(step) / 'state', args=args
        )
        restored = _restored_leaves(read, targets)
      except Exception as e:  # Orbax reports damage by a dozen types.
        if memory.is_exhausted(e):
          raise
        problem = f'its arrays cannot be read ({_reason(e)})'
    if restored is None:
      _drop_leftovers()
    # One exchange says both who could read it and what was read, so that all
    # processes come to the same conclusion.
    values = [0] * (1 + len(leaves))
    if restored is not None:
      values = [1] + [digests.local_digest(x) for x in restored]
    readers, *sums = multihost.sum_over_processes(values)
    if readers != jax.process_count():
      raise _DamagedError(problem)
    for name, digest in zip(leaves, sums):
      if saved[name]['digest'] != f'{digest:016x}':
        raise _DamagedError(f'{name} is not what was written')
    restored = [
        x.astype(leaf.dtype) for x, leaf in zip(restored, leaves.values())
    ]
    if jax.process_count() > 1:
      restored = [
          x if getattr(leaf, 'sharding', None) else x.addressable_data(0)
          for x, leaf in zip(restored, leaves.values())
      ]
    return restored

  def _set_aside(self, step: int) -> epath.Path:
    """Moves a damaged checkpoint out of the way, so that its step is free."""
    target = self.bad_directory / str(step)
    number = 1
    while target.exists():
      number += 1
      target = self.bad_directory / f'{step}.{number}'
    if jax.process_count() > 1:  # All have chosen the name.
      multihost_utils.sync_global_devices('rnnzoo_set_aside_begin')
    if jax.process_index() == 0:
      try:
        self.bad_directory.mkdir(parents=True, exist_ok=True)
        (self.directory / str(step)).rename(target)
      except OSError as e:
        raise errors.UserError(
            f'Checkpoint {step} in {self.directory} is damaged and cannot be '
            f'moved to {target}: {_reason(e)}.'
        ) from e
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices('rnnzoo_set_aside_end')
    self._metrics.pop(step, None)
    self._manager.reload()
    return target


def restore_meta(
    directory, *, step: int | None = None, best: bool = False
) -> tuple[int, dict[str, Any]]:
  """Reads `(step, meta)` of the latest sound checkpoint in a directory.

  Args:
    directory: Where the checkpoints lie; nothing in it is changed.
    step: Read this one and no other.
    best: Try the one with the lowest metric before the latest.

  Returns:
    The step, and what `Checkpointer.save` was given as `meta`.

  Raises:
    errors.UserFileNotFoundError: If there is no checkpoint, or not this one.
    errors.UserError: If none is sound.
  """
  with Checkpointer(directory, readonly=True) as checkpoints:
    return checkpoints.restore_meta(step=step, best=best)
