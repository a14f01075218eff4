"""Tests of `rnnzoo.training.losses`: chunks and meshes change nothing."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rnnzoo import errors
from rnnzoo import models
from rnnzoo import tasks
from rnnzoo.training import checks
from rnnzoo.training import losses
from rnnzoo.training import sharding
from tests import collectives

B, T, D, V = 8, 24, 16, 48


def make_operands(vocab_axis=1, dtype=jnp.float32, sizes=(B, T, D, V)):
  """Features, kernel, bias, targets and mask."""
  batch, time, width, vocab = sizes
  rng = np.random.default_rng(0)
  normal = lambda *s: jnp.asarray(rng.standard_normal(s, np.float32))
  kernel = normal(width, vocab)
  return (
      normal(batch, time, width).astype(dtype),
      kernel if vocab_axis else kernel.T,
      normal(vocab),
      jnp.asarray(rng.integers(0, vocab, (batch, time)), jnp.int32),
      jnp.asarray(rng.random((batch, time)) < 0.7),
  )


def chunked(chunk, vocab_axis=1, soft_cap=0.0):
  """The loss as a function of `make_operands`, and its sums."""

  def loss(x, kernel, bias, targets, mask):
    sums = losses.chunked_cross_entropy(
        x, kernel, targets, mask,
        vocab_axis=vocab_axis, bias=bias, soft_cap=soft_cap, chunk=chunk,
    )
    return sums['loss'], sums

  return loss


def plain(x, kernel, bias, targets, mask, vocab_axis=1, soft_cap=0.0):
  """What it must be: all logits, and JAX's own functions."""
  kernel = kernel if vocab_axis else kernel.T
  dtype = jnp.promote_types(jnp.float32, x.dtype)
  logits = jnp.matmul(x, kernel.astype(x.dtype), preferred_element_type=dtype)
  if bias is not None:
    logits += bias
  if soft_cap:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  likelihoods = jnp.take_along_axis(
      jax.nn.log_softmax(logits), targets[..., None], -1
  )[..., 0]
  mask = jnp.ones(targets.shape, bool) if mask is None else mask
  sums = dict(
      loss=-likelihoods.sum(where=mask),
      correct=(logits.argmax(-1) == targets).sum(where=mask),
      weight=mask.sum(),
  )
  return sums['loss'], sums


def run(function, *operands):
  return jax.jit(function, compiler_options=collectives.QUICKLY)(*operands)


def gradients(loss):
  return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)


class LossTestCase(parameterized.TestCase):

  def assert_close(self, got, want, rtol=1e-5):
    for u, v in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
      u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
      np.testing.assert_allclose(u, v, rtol, rtol * np.abs(v).max())


class CrossEntropyTest(LossTestCase):

  def test_equal_and_impossible_logits(self):
    logits = jnp.array([[2.0, 2, 1], [-jnp.inf, 0, 0], [0, 0, -jnp.inf]])
    targets = jnp.array([1, 2, 0])
    loss = lambda u: losses.cross_entropy(u, targets)['loss']
    sums = run(losses.cross_entropy, logits, targets)
    self.assertEqual((int(sums['correct']), int(sums['weight'])), (1, 3))
    want = math.log(2 * math.e + 1) - 1 + 2 * math.log(2)
    self.assertAlmostEqual(float(sums['loss']), want, places=5)
    grad = run(jax.grad(loss), logits)
    want = jax.nn.softmax(logits) - jax.nn.one_hot(targets, 3)
    np.testing.assert_allclose(grad, want, atol=1e-6)

  @parameterized.parameters(-1, 4)
  def test_a_target_that_is_none(self, wrong):
    targets, mask = jnp.array([wrong, 1]), jnp.array([False, True])
    whole, rest = run(
        lambda u: [losses.cross_entropy(u, targets, m) for m in (None, mask)],
        jnp.zeros((2, 4)),
    )
    self.assertTrue(jnp.isnan(whole['loss']))
    self.assertAlmostEqual(float(rest['loss']), math.log(4), places=5)

  def test_targets_of_any_integer_dtype(self):
    # They need not be able to hold the number of classes.
    rows = jnp.array([0, 7, 99])
    for count in (200, 256, 300, 50257):
      targets, wrong = [], []
      for name in ('int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32'):
        info = jnp.iinfo(name)
        targets.append(rows.astype(name))
        wrong += [
            jnp.array([one], name) for one in (info.min, info.max)
            if not 0 <= one < count
        ]

      def all_losses(kernel, targets, wrong):
        one = jnp.ones((1, 3, 1))
        of = lambda u: losses.cross_entropy(
            jnp.tile(kernel, (len(u), 1)), u
        )['loss']
        chunked = [
            losses.chunked_cross_entropy(one, kernel, u[None], chunk=2)['loss']
            for u in targets[1:2]
        ]
        return [of(u) for u in targets] + chunked, [of(u) for u in wrong]

      kernel = jnp.arange(count)[None] * 0.01
      found, none = run(all_losses, kernel, targets, wrong)
      want = optax.softmax_cross_entropy_with_integer_labels(
          jnp.tile(kernel, (3, 1)), rows
      ).sum()
      np.testing.assert_allclose(found, [want] * len(found), rtol=1e-5)
      self.assertTrue(np.isnan(none).all())
    with self.assertRaisesRegex(errors.UserValueError, '`targets` must be int'):
      losses.cross_entropy(jnp.zeros((2, 4)), jnp.zeros(2))

  @parameterized.parameters(
      dict(chunk=0), dict(chunk=1), dict(chunk=17), dict(chunk=64),
      dict(chunk=1000), dict(chunk=-1), dict(chunk=50, vocab_axis=0),
      dict(chunk=50, soft_cap=3.0), dict(chunk=50, bias=False),
      dict(chunk=50, mask=False),
      dict(chunk=50, dtype=jnp.bfloat16, rtol=1e-2),
  )
  def test_chunks(
      self, chunk, vocab_axis=1, soft_cap=0.0, bias=True, mask=True,
      dtype=jnp.float32, rtol=1e-5,
  ):
    operands = list(make_operands(vocab_axis, dtype))
    operands[2] = operands[2] if bias else None
    operands[4] = operands[4] if mask else None
    options = dict(vocab_axis=vocab_axis, soft_cap=soft_cap)
    loss = chunked(chunk, **options)
    both = lambda *u: (
        gradients(loss)(*u), gradients(lambda *v: plain(*v, **options))(*u),
        loss(*u),
    )
    with mock.patch.object(losses, 'LOGITS_AT_ONCE', 31 * V):
      found, ((_, want_sums), want), without = run(both, *operands)
    (_, sums), grads = found
    self.assert_close(sums, want_sums, 1e-5)
    self.assertEqual(int(sums['correct']), int(want_sums['correct']))
    self.assert_close(grads, want, rtol)
    self.assert_close(without, found[0], 1e-6)
    jax.tree.map(lambda u, v: self.assertEqual(u.dtype, v.dtype), grads, want)

  def test_a_sum_of_many_chunks_is_as_exact_as_of_one(self):
    # Added up in bfloat16 it would stand still after a few hundred.
    count = 4096
    x = jnp.ones((1, count, 1), jnp.bfloat16)
    loss = lambda kernel: losses.chunked_cross_entropy(
        x, kernel, jnp.zeros((1, count), jnp.int32), chunk=2
    )['loss']
    grad = run(jax.grad(loss), jnp.zeros((1, 2)))
    np.testing.assert_allclose(grad, [[-count / 2, count / 2]], rtol=1e-2)

  def test_no_tokens(self):
    operands = make_operands(sizes=(B, 0, D, V))
    (loss, _), grads = run(gradients(chunked(-1)), *operands)
    self.assertEqual(float(loss), 0)
    self.assertEqual(float(jnp.abs(grads[1]).max()), 0)

  def test_memory(self):
    operands = make_operands(sizes=(1, 512, D, 4096))

    def temporaries(chunk):
      compiled = jax.jit(gradients(chunked(chunk))).lower(*operands).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    logits = 4 * 512 * 4096
    self.assertGreater(temporaries(0), logits)
    self.assertLess(temporaries(32), logits / 4)

  def test_one_device_is_no_mesh(self):
    operands = make_operands()
    mesh = sharding.make_mesh(
        dict.fromkeys(sharding.MESH_AXES, 1), jax.devices()[:1]
    )
    with jax.set_mesh(mesh):
      jaxpr = str(jax.make_jaxpr(gradients(chunked(32)))(*operands))
    self.assertNotIn('shard_map', jaxpr)
    self.assertNotIn('psum', jaxpr)


class MeshTest(LossTestCase):

  def compiled(self, sizes, operands, loss):
    """Compiles `loss` for a mesh, on which the operands are put as by us."""
    if len(jax.devices()) < math.prod(sizes):
      self.skipTest(f'needs {math.prod(sizes)} devices')
    mesh = sharding.make_mesh(
        dict(zip(sharding.MESH_AXES, sizes)),
        jax.devices()[: math.prod(sizes)],
    )
    rows = jax.P(('data', 'fsdp'), 'sequence')
    specs = rows, jax.P('model', 'fsdp'), jax.P('model'), rows, rows

    def put(u, spec):
      parts = [
          math.prod(mesh.shape[n] for n in ((p,) if isinstance(p, str) else p))
          for p in spec
      ]
      fits = [
          p if n % k == 0 else None for p, n, k in zip(spec, u.shape, parts)
      ]
      return jax.device_put(u, jax.NamedSharding(mesh, jax.P(*fits)))

    operands = [put(u, spec) for u, spec in zip(operands, specs)]
    with jax.set_mesh(mesh):
      step = jax.jit(
          gradients(loss),
          out_shardings=(None, tuple(u.sharding for u in operands[:3])),
          compiler_options=collectives.QUICKLY,
      )
      return step.lower(*operands).compile(), operands

  @parameterized.parameters(
      (1, 1, 1, 8), (2, 2, 2, 1), (1, 2, 2, 2), (1, 8, 1, 1)
  )
  def test_gradients_and_what_is_sent(self, *sizes):
    operands, cap, chunk = make_operands(vocab_axis=0), 5.0, 8
    data, fsdp, model, sequence = sizes
    compiled, placed = self.compiled(sizes, operands, chunked(chunk, 0, cap))
    self.assert_close(
        compiled(*placed),
        run(
            gradients(lambda *u: plain(*u, vocab_axis=0, soft_cap=cap)),
            *operands,
        ),
    )
    lines = compiled.as_text().splitlines()
    in_loop, once = (
        collectives.sizes('\n'.join(
            line for line in lines if ('/while/' in line) == inside
        ))
        for inside in (True, False)
    )
    # In the loop two and three numbers for each token of a chunk, where not all
    # of its logits are in one place.
    want = [('all-reduce', chunk), ('all-reduce', 3 * chunk)]
    self.assertCountEqual(in_loop, want if model > 1 else [])
    # And once: the head is gathered, its gradient scattered and added up,
    # features' gradients are added up. Then there are the bias and the sums.
    head, bias = V * D // model // fsdp, V // model
    want = []
    if fsdp > 1:
      want += [('all-gather', head * fsdp), ('reduce-scatter', head)]
    if data * sequence > 1:
      want += [('all-reduce', head)]
    if model > 1:
      want += [('all-reduce', B * T * D * model // 8)]
    small = [u for u in once if u[0] == 'all-reduce' and u[1] <= bias]
    self.assertLessEqual(len(small), 4)
    self.assertCountEqual([u for u in once if u not in small], want)

  @parameterized.parameters(
      ((2, 2, 2, 1), (3, 10, 7, 5)), ((2, 2, 1, 2), (2, 7, 6, 4))
  )
  def test_sizes_that_do_not_divide(self, mesh_sizes, sizes):
    operands = make_operands(0, sizes=sizes)
    compiled, placed = self.compiled(mesh_sizes, operands, chunked(4, 0))
    want = run(gradients(lambda *u: plain(*u, vocab_axis=0)), *operands)
    self.assert_close(compiled(*placed), want)


class NextTokenLossTest(LossTestCase):

  @parameterized.parameters(
      dict(tie_embeddings=True, soft_cap=2.0),
      dict(norm='batch', dtype='bfloat16'),
  )
  def test_a_model_in_chunks(self, **options):
    config = models.ModelConfig.tiny().replace(
        num_layers=1, mlp='none', **options
    )
    task = tasks.LanguageModelling(config)
    functional = task.functional
    params, stats = functional.initialize(0)
    rng = np.random.default_rng(0)
    tokens = lambda: jnp.asarray(rng.integers(0, 16, (2, 9)), jnp.int32)
    batch = dict(inputs=tokens(), targets=tokens(), mask=tokens() > 3)
    carry = functional.merge(params, stats).initialize_carry(2)
    both = lambda *operands: [
        jax.value_and_grad(
            tasks.LanguageModelling(config, loss_chunk=chunk).loss_fn(
                train=True
            ),
            has_aux=True,
        )(*operands, None)
        for chunk in (5, 0)
    ]
    results = run(both, params, stats, batch, carry)
    self.assertEqual(*map(jax.tree.structure, results))
    self.assert_close(*results, 2e-2 if config.dtype == 'bfloat16' else 1e-5)

  def test_no_size(self):
    with self.assertRaisesRegex(errors.UserValueError, 'loss_chunk .* got -2'):
      tasks.LanguageModelling(loss_chunk=-2)

  def test_a_run_may_go_on_with_another(self):
    checks.check_same_config(dict(loss_chunk=0), dict(loss_chunk=256))


if __name__ == '__main__':
  absltest.main()
