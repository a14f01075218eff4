"""Digests of arrays: the same for any sharding, different if one bit differs.

The digest of an array is the sum, modulo 2^64, of a hash of (position in the
whole array, bits) over its elements. A sum does not depend on the order, so
each process hashes the shards that it holds.
"""

import math

import jax
import numpy as np

_WORD = 2**64
# Constants of splitmix64 (Steele, Lea and Flood, 2014).
_STRIDE = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
BLOCK = 2**15  # Elements hashed at once: the two buffers fit the L2 cache.


def _hash_sum(words: np.ndarray, starts: np.ndarray) -> int:
  """Returns the sum of the hashes of unsigned words, modulo 2^64.

  For a fixed position the hash is a bijection of 64-bit words, so a change in
  one element always changes the sum.

  Args:
    words: Unsigned integers `[R, L]`: `R` rows of `L` neighbours.
    starts: Position of each row's first word in the whole array, uint64 `[R]`.
  """
  runs, length = words.shape
  columns = min(length, BLOCK)
  rows = min(runs, BLOCK // columns)
  steps = np.arange(columns, dtype=np.uint64) * _STRIDE
  buffer = np.empty((2, rows, columns), np.uint64)
  total = 0
  for i in range(0, runs, rows):
    for j in range(0, length, columns):
      block = words[i : i + rows, j : j + columns]
      x, shifted = buffer[:, : block.shape[0], : block.shape[1]]
      first = (starts[i : i + rows] + np.uint64(j)) * _STRIDE
      np.add(first[:, None], steps[: block.shape[1]], out=x)
      x += block
      for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        np.right_shift(x, np.uint64(shift), out=shifted)
        x ^= shifted
        x *= factor
      np.right_shift(x, np.uint64(31), out=shifted)
      x ^= shifted
      total += int(x.sum(dtype=np.uint64))
  return total % _WORD


def shard_sum(data: np.ndarray, index: tuple[slice, ...], shape) -> int:
  """Returns the sum of hashes of a shard: `index` in an array of `shape`."""
  if not data.size:
    return 0
  offsets = [s.indices(n)[0] for s, n in zip(index, shape)]
  # A row is contiguous in the whole array: it spans all axes from the last one
  # that is sharded.
  parts = [k for k, n in enumerate(shape) if data.shape[k] != n]
  split = parts[-1] if parts else 0
  strides = [math.prod(shape[k + 1 :]) for k in range(len(shape))]
  starts = np.zeros((1,) * split, np.uint64)
  for k in range(split):
    axis = np.arange(offsets[k], offsets[k] + data.shape[k], dtype=np.uint64)
    axis *= np.uint64(strides[k])
    starts = starts + axis.reshape((-1,) + (1,) * (split - 1 - k))
  starts = starts.reshape(-1)
  if parts:
    starts = starts + np.uint64(offsets[split] * strides[split])
  bits = np.ascontiguousarray(data).reshape(starts.size, -1)
  width = min(bits.itemsize, 8)  # An element of complex128 is two words.
  starts = starts * np.uint64(bits.itemsize // width)
  return _hash_sum(bits.view(f'u{width}'), starts)


def local_digest(array: jax.Array) -> int:
  """Returns this process's part of a digest; replicas count once."""
  return sum(
      shard_sum(np.asarray(shard.data), shard.index, array.shape)
      for shard in jax.block_until_ready(array).addressable_shards
      if shard.replica_id == 0
  ) % _WORD
