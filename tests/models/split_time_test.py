"""Models compute the same numbers if the mesh splits time over devices."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.training import losses
from rnnzoo.training import sharding
from rnnzoo.training import state as state_lib
from tests import collectives

B, T, D, V = 4, 64, 16, 24


@functools.cache
def on_one_device(layer, **options):
  return gradients({}, layer, **options)


def gradients(mesh_sizes, layer, *, absent=False, **fields):
  """Returns the loss and gradients of packed rows, and the compiled text.

  Args:
    mesh_sizes: The sizes of the mesh axes; 1 if missing.
    layer: As in `ModelConfig`, with one block for each name.
    absent: Whether the model skips the masked tokens. If not, only the loss
      leaves them out.
    **fields: More fields of the config.
  """
  config = models.ModelConfig.tiny().replace(
      layer=layer, num_layers=layer.count(',') + 1, features=D, vocab_size=V,
      conv_kernel=4, mlp='none', **fields,
  )
  functional = state_lib.Functional(
      lambda rngs: models.LanguageModel(config, rngs=rngs)
  )
  rng = np.random.default_rng(0)
  batch = {
      name: rng.integers(0, V, (B, T), dtype=np.int32)
      for name in ('inputs', 'targets')
  }
  batch['reset'] = rng.random((B, T)) < 0.05
  batch['mask'] = rng.random((B, T)) < 0.8
  batch['mask'][:, 20:40] = False  # Whole segments are masked.

  def loss(params, batch_stats, batch):
    if not absent:
      loss_fn = tasks.LanguageModelling(config).loss_fn(train=True)
      return loss_fn(params, batch_stats, batch, None, None)[0]
    model = functional.merge(params, batch_stats)
    _, logits = model(
        batch['inputs'], reset=batch['reset'], mask=batch['mask'], train=True
    )
    return losses.cross_entropy(logits, batch['targets'], batch['mask'])['loss']

  count = int(np.prod(list(mesh_sizes.values())))
  mesh = sharding.make_mesh(
      dict(dict(data=1, fsdp=1, model=1, sequence=1), **mesh_sizes),
      jax.devices()[:count],
  )
  with jax.set_mesh(mesh):
    # Real initial values would take longer than the rest of the test.
    params = jax.tree.map(
        lambda leaf, axes: jax.device_put(
            0.3 * rng.standard_normal(leaf.shape, np.float32),
            sharding.parameter_sharding(mesh, leaf.shape, axes),
        ),
        functional.params, functional.axes,
    )
    batch_stats = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), functional.batch_stats
    )
    batch = sharding.global_batch(mesh, batch)
    step = jax.jit(
        jax.value_and_grad(loss), compiler_options=collectives.QUICKLY
    )
    compiled = step.lower(params, batch_stats, batch).compile()
    value, grads = compiled(params, batch_stats, batch)
  return float(value), jax.device_get(grads), compiled.as_text()


class SplitTimeTest(parameterized.TestCase):

  def assert_same(self, got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    size = max(np.abs(g).max() for g in jax.tree.leaves(want[1]))
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-5 * size),
        got[1], want[1],
    )

  @parameterized.parameters(
      ('min_gru,min_lstm,lru', 'batch', False),
      ('min_gru', 'rms', True),
      ('gru', 'layer', False),  # Scanned, token by token.
  )
  def test_loss_and_gradients(self, layer, norm, absent):
    want = on_one_device(layer, norm=norm, absent=absent)
    got = gradients(dict(sequence=8), layer, norm=norm, absent=absent)
    self.assert_same(got, want)
    counts = collectives.counts(got[2])
    if absent:
      # The tails of the masked convolution, the scan, and its gradient.
      self.assertEqual(counts['all-gather'], 3)
      self.assertEqual(counts['collective-permute'], 1)
    elif layer != 'gru':
      # In each layer: all-gathers for the scan and for its gradient. Permutes
      # for the state before each segment in the gradient, and for the tail of
      # the convolution and its gradient.
      self.assertEqual(counts['all-gather'], 2 * 3)
      self.assertEqual(counts['collective-permute'], 3 * 3)
    self.assertNotIn('all-to-all', counts)

  def test_matrix_states_attention_and_mamba(self):
    layer = 'gla,gated_delta_net,mlstm,mamba,attention'
    options = dict(
        norm='rms', absent=True,
        layer_options=dict(
            {name: dict(num_heads=2) for name in ('gla', 'mlstm')},
            gated_delta_net=dict(num_heads=2, key_features=4),
            mamba=dict(state_features=4), attention=dict(num_heads=2, window=4),
        ),
    )
    self.assert_same(
        gradients(dict(sequence=8), layer, **options),
        gradients({}, layer, **options),
    )

  def test_with_rows_and_channels_split_too(self):
    options = dict(norm='rms', absent=True)
    want = on_one_device('min_gru', **options)
    sizes = dict(data=2, sequence=2, model=2)
    got = gradients(sizes, 'min_gru', **options)
    self.assert_same(got, want)
    # Matmuls exchange channels, but no device gets the time of another one.
    for kind, size in collectives.sizes(got[2]):
      self.assertLessEqual(size, B // 2 * T // 2 * 2 * D, kind)


if __name__ == '__main__':
  absltest.main()
