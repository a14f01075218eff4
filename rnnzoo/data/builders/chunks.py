"""Data that is generated in chunks: by several processes, and after a stop.

Each chunk is a function of its number. So the chunks are the same for any
number of processes, and those that are in files need not be made again.
"""

import collections
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from concurrent.futures import process
import multiprocessing
import os
import pathlib
import signal
import threading
import zipfile
import zlib

import numpy as np
from rnnzoo import errors

Chunk = dict[str, np.ndarray]


def make(
    function: Callable[[int], Chunk],
    numbers: Iterable[int],
    directory: pathlib.Path,
    key: str,
    workers: int = 1,
) -> Generator[Chunk, None, None]:
  """Yields `function(number)` for each number, in order.

  Every chunk is kept in a file, complete or not at all. A later call reads the
  files that are there. Close the iterator to end the processes early.

  Args:
    function: Returns a chunk. It must be picklable if there are more workers.
    numbers: The numbers of the chunks; there may be no end of them.
    directory: Where the files lie; made if missing.
    key: Says all that decides what is in a chunk, apart from its number. Files
      with another key are made again.
    workers: The number of processes; with 1, this one does the work.

  Raises:
    OSError: If a file cannot be written.
    UserError: If a process was killed. The files of finished chunks stay.
  """
  directory.mkdir(parents=True, exist_ok=True)
  path = lambda number: directory / f'{number:06d}.npz'
  if workers == 1:
    for number in numbers:
      _write(function, number, path(number), key)
      yield _finished(path(number), key)
    return
  pool = futures.ProcessPoolExecutor(
      workers, multiprocessing.get_context('spawn'), start_worker
  )
  waiting, numbers = collections.deque(), iter(numbers)
  try:
    while True:
      for number in numbers:
        waiting.append((number, pool.submit(
            _write, function, number, path(number), key
        )))
        if len(waiting) > workers:
          break
      if not waiting:
        return
      number, future = waiting.popleft()
      future.result()
      yield _finished(path(number), key)
  except process.BrokenProcessPool as error:
    raise errors.UserError(
        'A process that generates data has ended, perhaps because memory was '
        'short. Finished parts are kept: the same command goes on from there, '
        'with fewer --workers if you like.'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def start_worker():
  """Makes a process end with its parent, and leave Ctrl-C to it."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def follow():
    if parent:
      parent.join()
      os._exit(1)

  threading.Thread(target=follow, daemon=True).start()


def _write(function, number, path, key):
  """Makes the file of a chunk, unless it is there."""
  if _read(path, key) is not None:
    return
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    with part.open('wb') as file:
      np.savez(file, key=np.array(key), **function(number))
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def _read(path, key) -> Chunk | None:
  """Returns the chunk of a file; None if it is missing, damaged or another."""
  try:
    with np.load(path, allow_pickle=False) as file:
      found = {name: file[name] for name in file.files}
  except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
    return None
  return found if str(found.pop('key', '')) == key else None


def _finished(path, key):
  chunk = _read(path, key)
  if chunk is None:
    raise errors.UserError(
        f'{path} was just written, but cannot be read. Run the same command '
        'again.'
    )
  return chunk
