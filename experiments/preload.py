"""Imports what all commands need, once for all; see cli/processes.py."""

import warnings

# Nothing here prevents forks: JAX starts no backend and no threads.
warnings.filterwarnings('ignore', message='os.fork')

from experiments.cli import drivers as drivers  # noqa: E402
from experiments.cli import sampling as sampling  # noqa: E402
from experiments.cli import tasks as tasks  # noqa: E402
from experiments.configs import default as default  # noqa: E402
