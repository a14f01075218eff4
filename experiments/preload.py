"""Imports what all commands need, once for all; see cli/processes.py."""

import gc
import warnings

# As in tests/conftest.py: at Python's thresholds, the search for garbage takes
# a fifth of the time of a short run.
gc.set_threshold(200_000, 50, 1000)

# Nothing here prevents forks: JAX starts no backend and no threads.
warnings.filterwarnings('ignore', message='os.fork')

from experiments.cli import drivers as drivers  # noqa: E402
from experiments.cli import sampling as sampling  # noqa: E402
from experiments.cli import tasks as tasks  # noqa: E402
from experiments.configs import default as default  # noqa: E402

gc.freeze()  # Modules stay until the end: no command looks at them again.
