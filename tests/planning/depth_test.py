"""The longest path through compiled programs."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
from rnnzoo.planning import depth
from rnnzoo.planning import hlo

_TEXT = """HloModule m

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %u = f32[8]{0} get-tuple-element(%s), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %v = f32[8]{0} sine(%u)
  %w = f32[8]{0} cosine(%v)
  ROOT %out = (s32[], f32[8]) tuple(%next, %w)
}

%condition (s: (s32[], f32[8])) -> pred[] {
  %s.1 = (s32[], f32[8]) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %end = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %zero = s32[] constant(0)
  %short = f32[8]{0} negate(%x)
  %long = f32[8]{0} exponential(%x)
  %longer = f32[8]{0} sine(%long)
  %both = f32[8]{0} add(%short, %longer)
  %start = (s32[], f32[8]) tuple(%zero, %both)
  %loop = (s32[], f32[8]) while(%start), condition=%condition, body=%body
  ROOT %y = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


class DepthTest(absltest.TestCase):

  def test_counts_each_round_and_the_longest_of_branches(self):
    self.assertEqual(depth.critical_path(hlo.Program(_TEXT)), 3 + 5 * 2)

  def test_a_loop_of_unknown_length_has_no_count(self):
    text = _TEXT.replace('constant(5)', 'iota()')
    self.assertIsNone(depth.critical_path(hlo.Program(text)))

  def test_a_program_that_runs_here(self):
    counts = []
    for length in (4, 8):
      run = lambda x, n=length: jax.lax.scan(
          lambda h, _: (jnp.tanh(h @ x), None), x, length=n
      )[0]
      text = jax.jit(run).lower(jnp.ones((8, 8))).compile().as_text()
      counts.append(depth.critical_path(hlo.Program(text)))
    # At least a product in each of four more rounds, and few more than that.
    self.assertBetween(counts[1] - counts[0], 4, 16)


if __name__ == '__main__':
  absltest.main()
