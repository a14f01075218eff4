"""Keeps Orbax from losing memory at every save and restore.

TensorStore (0.1.86) never frees the keys and values of the JSON that it returns
to Python. Orbax asks for such JSON once for each array, and for all metrics of
TensorStore twice a save: some 40 kB for a state of 40 arrays. Orbax has no
option against either, and needs neither.
"""

import contextlib

import tensorstore


class _LocalSpec(dict):
  """The JSON of a `tensorstore.KvStore.Spec` of local files, canonical."""

  def to_json(self):
    """Returns a copy, as TensorStore does."""
    return dict(self)


class _KvStore:
  """`tensorstore.KvStore`, except for `Spec(...).to_json()` of local files."""

  open = tensorstore.KvStore.open

  @staticmethod
  def Spec(json):
    """Returns what the class of this name would return."""
    if json.keys() == {'driver', 'path'} and json['driver'] == 'file':
      return _LocalSpec(json)
    return tensorstore.KvStore.Spec(json)


class _TensorStore:
  """`tensorstore`, except for the functions that lose memory."""

  KvStore = _KvStore

  @staticmethod
  def experimental_collect_matching_metrics(*_, **__):
    """Returns no metrics: Orbax only logs them."""
    return []

  def __getattr__(self, name):
    return getattr(tensorstore, name)


@contextlib.contextmanager
def avoided():
  """Gives Orbax a `tensorstore` that loses nothing, as long as this is open.

  A version of Orbax that is built in another way is left as it is.
  """
  try:
    from orbax.checkpoint._src.serialization import tensorstore_utils
  except ImportError:
    yield
    return
  if getattr(tensorstore_utils, 'ts', None) is not tensorstore:
    yield
    return
  tensorstore_utils.ts = _TensorStore()
  try:
    yield
  finally:
    tensorstore_utils.ts = tensorstore
