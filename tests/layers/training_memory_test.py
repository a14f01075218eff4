"""What a training step keeps of a long sequence, for layers without matrices.

Layers whose state is a matrix have a test of this in their own files.
"""

from absl.testing import parameterized
from flax import nnx
from rnnzoo import layers
from tests.layers import modules

_TIME, _FEATURES = 4096, 64
# Each layer, and how many vectors of a token a step may have in memory at once.
# All weights of four heads of attention would be as much as 256 of them.
_CASES = dict(
    linoss=(lambda rngs: layers.LinOSS(_FEATURES, rngs=rngs), 36),
    d_linoss=(lambda rngs: layers.DLinOSS(_FEATURES, rngs=rngs), 36),
    signed_min_gru=(lambda rngs: layers.SignedMinGRU(_FEATURES, rngs=rngs), 9),
    para_gru=(lambda rngs: layers.ParaGRU(
        _FEATURES, num_heads=4, rngs=rngs
    ), 24),
    para_lstm=(lambda rngs: layers.ParaLSTM(
        _FEATURES, num_heads=4, rngs=rngs
    ), 54),
    short_conv=(lambda rngs: layers.ShortConv(_FEATURES, rngs=rngs), 14),
    gated_attention=(lambda rngs: layers.GatedAttention(
        _FEATURES, num_heads=4, window=_TIME, chunk_size=32, rngs=rngs
    ), 50),
    latent_attention=(lambda rngs: layers.LatentAttention(
        _FEATURES, num_heads=4, window=_TIME, chunk_size=32, rngs=rngs
    ), 56),
)


class TrainingMemoryTest(parameterized.TestCase):

  @parameterized.parameters(*_CASES)
  def test_a_training_step_keeps_a_few_vectors_a_token(self, name):
    make, allowed = _CASES[name]
    layer = make(nnx.Rngs(0))
    temporaries = modules.training_memory(layer, _TIME)
    self.assertLess(temporaries / (4 * _TIME * _FEATURES), allowed)
