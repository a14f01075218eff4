"""Tests of `planning.traffic`: what devices send, read from compiled text.

The text in `compiled/` is written by hand in the style of a TPU (asynchronous
operations on one channel, a loop whose rounds must be derived, arrays that stay
on the chip) and of a GPU (starts and dones, a loop whose rounds are known).
"""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
from rnnzoo.planning import hlo
from rnnzoo.planning import traffic


def text(name):
  return (pathlib.Path(__file__).parent / f'compiled/{name}.txt').read_text()


def found(name, devices, *replaced):
  """Returns a program, and `(times, bytes, group)` of each kind."""
  program = hlo.Program(text(name).replace(*replaced or ('', '')))
  return program, {
      one.kind: (one.times, one.size, one.group)
      for one in traffic.collectives(program, devices)
  }


class CompiledTextTest(parameterized.TestCase):

  def test_collectives_of_a_tpu_program(self):
    program, collectives = found('tpu', 4)
    # Up to 8 in steps of 2.
    self.assertEqual([loop.rounds for loop in program.loops], [4])
    # One of two under one channel; a sum of which each keeps its half.
    self.assertEqual(collectives, {
        'all-gather': (4, 256 * 256 * 2 / 2, (0, 1)),
        'reduce-scatter': (1, 128 * 64 * 4, (0, 1)),
    })

  def test_collectives_of_a_gpu_program(self):
    program, collectives = found('gpu', 16)
    self.assertEqual([loop.rounds for loop in program.loops], [24])
    self.assertEqual(collectives, {
        'all-gather': (24, 256 * 4 * 3 / 4, (0, 4, 8, 12)),
        'reduce-scatter': (24, 64 * 4 * 7, tuple(range(8))),
        'collective-permute': (1, 64 * 4, (0, 1)),
        'all-reduce': (1, 2 * 64 * 4 * 15 / 16, tuple(range(16))),
    })

  def test_a_slice_moves_only_its_own_bytes(self):
    one = 64 * 64 * 4
    # A slice is read and written; a slice is read and written in place; the
    # gathered weights stay on the chip. And a sum is halved.
    in_loop = 2 * one + 2 * one + 2 * 128 * 256 * 2
    small = 2 * 3 * 4 + 4 + 4  # The counter.
    self.assertAlmostEqual(
        traffic.bytes_moved(hlo.Program(text('tpu'))),
        4 * (in_loop + small) + 256 * 64 * 4 + 128 * 64 * 4,
    )

  def test_a_loop_of_unknown_length_counts_once_and_is_named(self):
    program, collectives = found('tpu', 4, 'constant(8)', 'iota()')
    self.assertEqual([loop.rounds for loop in program.loops], [None])
    self.assertEqual(collectives['all-gather'][0], 1)

  def test_collectives_of_a_program_that_runs_here(self):
    # 6 rounds; the product reads two and writes one.
    def f(x):
      return jax.lax.scan(lambda h, _: (jnp.tanh(h @ x), None), x, length=6)[0]

    x = jnp.ones((256, 256))
    program = hlo.Program(jax.jit(f).lower(x).compile().as_text())
    self.assertEqual([loop.rounds for loop in program.loops], [6])
    self.assertEmpty(traffic.collectives(program, 1))
    self.assertBetween(traffic.bytes_moved(program) / x.nbytes, 18, 50)

  def test_an_asynchronous_fusion_reads_its_part_only(self):
    text = """HloModule m

%part (all: f32[64,128], i: s32[]) -> f32[1,128] {
  %all = f32[64,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,128]{1,0} dynamic-slice(%all, %i, %zero)
}

ENTRY %main (x: f32[64,128], n: s32[]) -> f32[1,128] {
  %x = f32[64,128]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %begin = ((f32[64,128]{1,0}, s32[]), f32[1,128]{1,0}, u32[]) \
fusion-start(%x, %n), kind=kLoop, calls=%part
  ROOT %end = f32[1,128]{1,0} fusion-done(%begin)
}
"""
    program = hlo.Program(text)
    row = 4 * 128  # It is read and written; the index has four bytes.
    self.assertEqual(traffic.bytes_moved(program), 2 * row + 4)


if __name__ == '__main__':
  absltest.main()
