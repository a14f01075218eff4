"""WAV files of 16-bit samples and one channel, with the standard library."""

import io
import wave

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import records


def read(content: bytes, what: str, rate: int) -> np.ndarray:
  """Returns the samples of a file, `[n]` int16.

  Args:
    content: The bytes of the file.
    what: Its name, for the message.
    rate: The samples a second that it must have.

  Raises:
    UserValueError: If it is of another form, damaged, or cut short.
  """
  try:
    with wave.open(io.BytesIO(content)) as file:
      form = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
      count = file.getnframes()
      frames = file.readframes(count)
  # A wrong size of a part is a RuntimeError without words.
  except (wave.Error, EOFError, RuntimeError) as error:
    raise errors.UserValueError(
        f'{what} cannot be read as a WAV file: {records.first_line(error)}.'
    ) from error
  if form != (1, 16, rate):
    raise errors.UserValueError(
        f'{what} must have 1 channel and 16 bits at {rate} Hz, got '
        f'{form[0]} and {form[1]} at {form[2]} Hz.'
    )
  if not count or len(frames) != 2 * count:
    raise errors.UserValueError(
        f'{what} must hold {count} samples, got {len(frames) // 2}: it is '
        'empty or cut short.'
    )
  return np.frombuffer(frames, '<i2').astype(np.int16)


def to_bytes(samples: np.ndarray, rate: int) -> bytes:
  """Returns the file that `read` reads, of samples `[n]` int16."""
  content = io.BytesIO()
  with wave.open(content, 'wb') as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(rate)
    file.writeframes(samples.astype('<i2').tobytes())
  return content.getvalue()
