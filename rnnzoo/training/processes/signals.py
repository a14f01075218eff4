"""SIGINT, SIGTERM and SIGHUP: a wish to stop, granted after a save."""

import contextlib
import signal


class Interrupted(Exception):
  """The run was asked to stop and has saved; `signum` says by which signal."""

  def __init__(self, signum: int, step: int):
    self.signum = signum
    super().__init__(
        f'Stopped by {signal.Signals(signum).name}; step {step} is saved. The '
        'same command goes on from there.'
    )


class Stop:
  """Remembers that a signal came; the loop looks at every step."""

  signum: int | None = None


@contextlib.contextmanager
def caught():
  """Turns these signals into a wish; a second SIGINT kills as usual.

  Where SIGHUP is already ignored, as under `nohup`, it stays ignored.
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
