"""The kinds of task by name."""

from collections.abc import Mapping

from rnnzoo import errors
from rnnzoo.tasks import autoencoding
from rnnzoo.tasks import base
from rnnzoo.tasks import classification
from rnnzoo.tasks import decisions
from rnnzoo.tasks import events
from rnnzoo.tasks import forecasting
from rnnzoo.tasks import known_source
from rnnzoo.tasks import language
from rnnzoo.tasks import matching
from rnnzoo.tasks import regression
from rnnzoo.tasks import video

Tasks = Mapping[str, type[base.Task]]

TASKS: dict[str, type[base.Task]] = {
    'autoencoding': autoencoding.Autoencoding,
    'classification': classification.Classification,
    'decisions': decisions.Decisions,
    'events': events.EventPrediction,
    'forecasting': forecasting.Forecasting,
    'known_source': known_source.KnownSource,
    'language_modelling': language.LanguageModelling,
    'matching': matching.Matching,
    'regression': regression.Regression,
    'video': video.Video,
}


def find(name: str, tasks: Tasks | None = None) -> type[base.Task]:
  """Returns the kind of task of a name.

  >>> find('regression').__name__
  'Regression'

  Args:
    name: A key of `TASKS` or of `tasks`.
    tasks: More kinds by name, such as the `TASKS` of a config file.

  Raises:
    UserValueError: If there is no such kind.
  """
  known = {**TASKS, **(tasks or {})}
  if name not in known:
    raise errors.UserValueError(
        f'There is no kind of task {name!r}; the kinds are '
        f'{", ".join(known)}.{errors.suggest(str(name), known)} A config file '
        'may export more as TASKS.'
    )
  return known[name]
