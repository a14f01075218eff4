"""Keeps Orbax from losing memory at every save and restore.

TensorStore (0.1.86) never frees the keys and values of the JSON that it returns
to Python. Orbax asks for such JSON once an array, and for all its metrics twice
a save: some 40 kB for a state of 40 arrays. It can do without both.
"""

import tensorstore


class _Spec:
  """What Orbax asks of `tensorstore.KvStore.Spec`: its canonical JSON."""

  def __init__(self, json):
    self._json = json

  def to_json(self):
    """Returns that of local files as it was given, which is canonical."""
    if self._json.keys() == {'driver', 'path'} and (
        self._json['driver'] == 'file'
    ):
      return dict(self._json)
    return tensorstore.KvStore.Spec(self._json).to_json()


class _KvStore:
  """`tensorstore.KvStore`, but for `Spec`."""

  Spec = _Spec
  open = tensorstore.KvStore.open


class _TensorStore:
  """`tensorstore`, but for what loses memory."""

  KvStore = _KvStore

  @staticmethod
  def experimental_collect_matching_metrics(*_, **__):
    """Returns no metrics: Orbax only logs them."""
    return []

  def __getattr__(self, name):
    return getattr(tensorstore, name)


def mend_orbax() -> bool:
  """Gives Orbax a `tensorstore` that loses nothing.

  Returns:
    Whether it was done: not where a version of Orbax is built otherwise.
  """
  try:
    from orbax.checkpoint._src.serialization import tensorstore_utils
  except ImportError:
    return False
  if getattr(tensorstore_utils, 'ts', None) is tensorstore:
    tensorstore_utils.ts = _TensorStore()
  return isinstance(getattr(tensorstore_utils, 'ts', None), _TensorStore)
