"""Kinds of task: which model is trained, its loss, and what its numbers mean.

>>> from rnnzoo import models, tasks
>>> task = tasks.Classification(models.ModelConfig(layer='lru', num_layers=2))
>>> task.best, task.best_mode
('accuracy', 'max')

A data set names its kind (`Dataset.task`, a key of `TASKS`). A new kind is one
file with a subclass of `Task` and one line here.
"""

from rnnzoo.tasks.autoencoding import Autoencoding
from rnnzoo.tasks.base import Task
from rnnzoo.tasks.classification import Classification
from rnnzoo.tasks.decisions import Decisions
from rnnzoo.tasks.events import EventPrediction
from rnnzoo.tasks.forecasting import Forecasting
from rnnzoo.tasks.known_source import KnownSource
from rnnzoo.tasks.language import LanguageModelling
from rnnzoo.tasks.matching import Matching
from rnnzoo.tasks.registry import TASKS
from rnnzoo.tasks.registry import find
from rnnzoo.tasks.regression import Regression
from rnnzoo.tasks.video import Video

__all__ = [
    'Autoencoding', 'Classification', 'Decisions', 'EventPrediction',
    'Forecasting', 'KnownSource', 'LanguageModelling', 'Matching', 'Regression',
    'TASKS', 'Task', 'Video', 'find',
]
