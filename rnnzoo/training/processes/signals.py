"""SIGINT, SIGTERM and SIGHUP ask a run to stop, which it does after a save."""

import contextlib
import signal


class Interrupted(Exception):
  """The run was asked to stop by the signal `signum`, and has saved."""

  def __init__(self, signum: int, step: int):
    self.signum = signum
    super().__init__(
        f'Stopped by {signal.Signals(signum).name}; step {step} is saved. The '
        'same command goes on from there.'
    )


class Stop:
  """Holds the signal that has arrived; the loop looks at it after each step."""

  signum: int | None = None


@contextlib.contextmanager
def caught():
  """Yields a `Stop` that notes these signals; a second SIGINT kills as usual.

  If SIGHUP is already ignored, as under `nohup`, it stays ignored.
  """
  stop = Stop()

  def remember(signum, _):
    stop.signum = signum
    signal.signal(signal.SIGINT, signal.default_int_handler)

  signals = [signal.SIGINT, signal.SIGTERM]
  hangup = getattr(signal, 'SIGHUP', None)  # Windows has none.
  if hangup and signal.getsignal(hangup) != signal.SIG_IGN:
    signals.append(hangup)
  old = {s: signal.signal(s, remember) for s in signals}
  try:
    yield stop
  finally:
    for signum, handler in old.items():
      signal.signal(signum, handler)
