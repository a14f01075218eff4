"""One process of several that knows nothing of the others; number 1 dies."""

import os
import signal
import sys
import time

print('ready')
if '--process_id=1' in sys.argv:
  os.kill(os.getpid(), signal.SIGKILL)
time.sleep(300)
