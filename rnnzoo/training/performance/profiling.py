"""A window of steps, traced for a profiler."""

import jax
from rnnzoo.training import files


class Profiler:
  """Traces the steps of a window into a directory, for TensorBoard or xprof."""

  def __init__(self, window, directory):
    if window:
      files.check_own(directory)
    self._window, self._directory = window, directory
    self._runs = False

  def before(self, first, last):
    """Starts the trace if the window begins within these steps."""
    if self._window and first <= self._window[0] <= last:
      jax.profiler.start_trace(str(self._directory))
      self._runs = True

  def after(self, step, results):
    """Ends the trace after the window's last step, once that is computed."""
    if self._runs and step >= self._window[1]:
      jax.block_until_ready(results)
      self.close()

  def close(self):
    """Ends the trace if there is one."""
    if self._runs:
      jax.profiler.stop_trace()
      self._runs = False
