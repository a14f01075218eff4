"""The files of weights of a folder: `*.safetensors`, and nothing pickled."""

from collections.abc import Iterator, Mapping
import itertools
import json
import math
import pathlib
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from rnnzoo import errors

FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'

# The dtypes of files that we read.
DTYPES = dict(F64='float64', F32='float32', F16='float16', BF16='bfloat16')
_PICKLED = ('*.bin', '*.pt', '*.pth', '*.ckpt')


class Tensor(NamedTuple):
  """What a file says of a tensor."""

  file: pathlib.Path
  name: str  # In the file, which may be an old one.
  shape: tuple[int, ...]
  dtype: str


def library() -> Any:
  """Returns the module `safetensors`.

  Raises:
    UserFileNotFoundError: If it is not installed.
  """
  try:
    import safetensors  # An extra.
    import safetensors.numpy
  except ImportError as error:
    raise errors.UserFileNotFoundError(
        'Pretrained weights need the library safetensors. To install it: pip '
        'install safetensors'
    ) from error
  return safetensors


def find(folder: pathlib.Path) -> dict[str, Tensor]:
  """Returns the tensors of a folder by name; reads headers only.

  Raises:
    UserFileNotFoundError: If there are no weights, or only pickled ones.
    UserValueError: If a file is damaged, or has a dtype that is not known.
  """
  safetensors, tensors = library(), {}
  for file in _files(folder):
    try:
      with safetensors.safe_open(file, framework='numpy') as opened:
        for name in opened.keys():
          found = opened.get_slice(name)
          shape, dtype = tuple(found.get_shape()), found.get_dtype()
          if dtype not in DTYPES:
            raise errors.UserValueError(
                f'{file}: tensor {name} is {dtype}. Weights must be '
                f'{", ".join(DTYPES)}: quantised ones are not implemented.'
            )
          tensors[name] = Tensor(file, name, shape, DTYPES[dtype])
    except safetensors.SafetensorError as error:
      raise errors.UserValueError(
          f'{file} is damaged or incomplete: {error}.'
      ) from error
  return tensors


def read(tensor: Tensor, start: int, stop: int) -> np.ndarray:
  """Returns the rows of a tensor from `start` to `stop`, or to its end.

  The file is opened each time. It is mapped into memory, and what was read of
  an open file would stay there.
  """
  with library().safe_open(tensor.file, framework='numpy') as opened:
    return opened.get_slice(tensor.name)[start : min(stop, tensor.shape[0])]


def write(
    folder: pathlib.Path,
    sizes: Mapping[str, int],
    tensors: Iterator[tuple[str, np.ndarray]],
    shard_bytes: int,
):
  """Writes tensors in order, a file for every `shard_bytes` of them.

  Args:
    folder: Where to.
    sizes: The number of bytes of each tensor.
    tensors: Names and values, in the order of `sizes`.
    shard_bytes: So much is in memory at once, in addition to the model.
  """
  save_file = library().numpy.save_file
  shards: list[list[str]] = [[]]
  filled = 0
  for name, size in sizes.items():
    if shards[-1] and filled + size > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(name)
    filled += size
  where = {}
  for number, names in enumerate(shards, 1):
    file = FILE
    if len(shards) > 1:
      file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    # The library writes the memory of an array, whatever its strides say.
    held = {
        name: np.ascontiguousarray(value)
        for name, value in itertools.islice(tensors, len(names))
    }
    save_file(held, folder / file, metadata=dict(format='pt'))
    where |= dict.fromkeys(names, file)
  if len(shards) > 1:
    index = dict(
        metadata=dict(total_size=sum(sizes.values())), weight_map=where
    )
    (folder / INDEX).write_text(json.dumps(index, indent=2) + '\n')


def size_of(tensor: Tensor) -> int:
  """Returns the number of bytes of a tensor."""
  dtype = ml_dtypes.bfloat16 if tensor.dtype == 'bfloat16' else tensor.dtype
  return math.prod(tensor.shape) * np.dtype(dtype).itemsize


def _files(folder):
  """Returns the files of weights of a folder."""
  index = folder / INDEX
  if not index.exists():
    if (folder / FILE).exists():
      return [folder / FILE]
    if any(file for kind in _PICKLED for file in folder.glob(kind)):
      raise errors.UserFileNotFoundError(
          f'{folder} has weights in pickled files only, which can run any '
          'program when they are read. To convert them, where transformers is '
          'installed and you trust the files: python -c "import transformers '
          f"as t; t.AutoModelForCausalLM.from_pretrained('{folder}')"
          '.save_pretrained(\'NEW\')"'
      )
    raise errors.UserFileNotFoundError(
        f'There are no weights in {folder}: it has neither {FILE} nor {INDEX}.'
    )
  try:
    names = set(json.loads(index.read_bytes())['weight_map'].values())
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.UserValueError(
        f'{index} must hold an object with "weight_map".'
    ) from error
  for name in names:
    if not isinstance(name, str) or pathlib.PurePath(name).name != name:
      raise errors.UserValueError(
          f'{index} must name files of its own folder, got {name!r}.'
      )
    if not (folder / name).exists():
      raise errors.UserFileNotFoundError(
          f'{folder} lacks {name}, which {INDEX} names.'
      )
  return [folder / name for name in sorted(names)]
