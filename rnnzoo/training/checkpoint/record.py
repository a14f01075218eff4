"""The record of a checkpoint: `meta/metadata`, described in the package."""

import errno
import hashlib
import json
from typing import Any

from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import records
from rnnzoo.training.checkpoint import damage
from rnnzoo.training.checkpoint import digests
from rnnzoo.training.checkpoint import paths
from rnnzoo.training.processes import multihost

FORMAT = 1

# Errors of the system that mean damage, where only another checkpoint helps.
_DAMAGE = (errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENOTDIR)


def checksum(record: dict[str, Any]) -> str:
  """Returns what the entry `sha256` of a record must be."""
  rest = {key: value for key, value in record.items() if key != 'sha256'}
  return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def make(step, leaves, meta, metric, mode) -> dict[str, Any]:
  """Returns the record of a new checkpoint; all processes call this together.

  Args:
    step: The step.
    leaves: The arrays by name.
    meta: What the caller wants to keep.
    metric: Its value for the choice of the best checkpoint, or `None`.
    mode: `'min'` or `'max'`, whichever is the best metric.

  Raises:
    ValueError: If JSON cannot hold `meta`.
  """
  sums = multihost.sum_over_processes(
      [digests.local_digest(x) for x in leaves.values()]
  )
  record = {
      'format': FORMAT,
      'step': step,
      'meta': meta,
      'metric': metric,
      'best_mode': mode,
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
  return _complete(record)


def best_mode(record: dict[str, Any]) -> str:
  """Returns the mode in which a record's metric is compared."""
  return 'max' if record.get('best_mode') == 'max' else 'min'


def read(directory, step: int) -> dict[str, Any]:
  """Reads the record of a checkpoint.

  Raises:
    damage.DamagedError: If it is not what was written.
    errors.UserError: If it cannot be read, or has another format.
  """
  path = directory / str(step) / 'meta' / 'metadata'
  try:
    record = records.parse_checkpoint(path.read_bytes())
  except FileNotFoundError as e:
    raise damage.DamagedError('meta/metadata is missing') from e
  except OSError as e:
    reason = damage.reason(e)
    if e.errno in _DAMAGE:
      raise damage.DamagedError(f'meta/metadata: {reason}') from e
    raise errors.UserError(f'Cannot read {path}: {reason}.') from e
  except ValueError as e:
    raise damage.DamagedError('meta/metadata is not what was written') from e
  if record['sha256'] != checksum(record) or record['step'] != step:
    raise damage.DamagedError('meta/metadata is not what was written')
  for name in record['leaves']:
    if paths.leads_out(name):
      raise damage.DamagedError(f'meta/metadata names {name!r}')
  if record['format'] != FORMAT:
    raise errors.UserValueError(
        f'{path} has format {record["format"]}; this version of rnnzoo reads '
        f'format {FORMAT}.'
    )
  return record


def write(directory, record: dict[str, Any]) -> None:
  """Replaces the record of a checkpoint, all of it at one moment.

  Raises:
    OSError: If it cannot be written; the old record is intact then.
  """
  path = directory / str(record['step']) / 'meta' / 'metadata'
  files.write_text(path, json.dumps(_complete(record)))


def _complete(record):
  """Adds the checksum; leaves out the mode that is the default."""
  record = dict(record)
  if record.get('best_mode') == 'min':
    del record['best_mode']
  return record | {'sha256': checksum(record)}
