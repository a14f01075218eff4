"""What all command lines import, loaded once; see cli/processes.py."""

import warnings

# Nothing runs here that a fork could disturb: no backend, no threads of JAX.
warnings.filterwarnings('ignore', message='os.fork')

from experiments.cli import drivers as drivers  # noqa: E402
from experiments.cli import sampling as sampling  # noqa: E402
from experiments.cli import tasks as tasks  # noqa: E402
from experiments.configs import default as default  # noqa: E402
