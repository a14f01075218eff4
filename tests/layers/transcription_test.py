"""Each layer against its paper's equations, as loops in float64 NumPy."""

from absl.testing import parameterized
import numpy as np
from rnnzoo import layers
from rnnzoo.layers import min_gru
from tests.layers import transcription
from tests.layers.transcription import sigmoid


def positive(u):  # g, appendix B.3 of arXiv 2410.01201.
  return np.where(u >= 0, u + 0.5, sigmoid(u))


def elman(p, x, h):
  """Elman (1990), with tanh."""
  w, u, b = p['input/kernel'], p['hidden/kernel'], p['input/bias']
  ys = []
  for x_t in x:
    h = np.tanh(x_t @ w[:, 0] + b[0] + h @ u[:, 0])
    ys.append(h)
  return h, ys


def dense_rnn(p, x, h, f=lambda u: u):
  """Orvieto et al. (2023), arXiv 2303.06349, section 2, without biases."""
  ys = []
  for x_t in x:
    h = f(x_t @ p['input/kernel'][:, 0] + h @ p['hidden/kernel'][:, 0])
    ys.append(h @ p['C'] + p['D'] * x_t)
  return h, ys


def dense_rnn_relu(p, x, h):
  """The same with max(u, 0)."""
  return dense_rnn(p, x, h, f=lambda u: np.where(u > 0, u, 0))


def gru(p, x, h):
  """Cho et al. (2014), with the reset after the product as in cuDNN."""
  w, u = p['input/kernel'], p['hidden/kernel']
  b, c = p['input/bias'], p['hidden/bias']
  ys = []
  for x_t in x:
    r = sigmoid(x_t @ w[:, 0] + b[0] + h @ u[:, 0] + c[0])
    z = sigmoid(x_t @ w[:, 1] + b[1] + h @ u[:, 1] + c[1])
    n = np.tanh(x_t @ w[:, 2] + b[2] + r * (h @ u[:, 2] + c[2]))
    h = (1 - z) * n + z * h
    ys.append(h)
  return h, ys


def gru_reset_before(p, x, h):
  """Chung et al. (2014), arXiv 1412.3555, section 3.2; z takes the new."""
  w, u, b = p['input/kernel'], p['hidden/kernel'], p['input/bias']
  ys = []
  for x_t in x:
    r = sigmoid(x_t @ w[:, 0] + b[0] + h @ u[:, 0])
    z = sigmoid(x_t @ w[:, 1] + b[1] + h @ u[:, 1])
    n = np.tanh(x_t @ w[:, 2] + b[2] + (r * h) @ u[:, 2])
    h = (1 - z) * h + z * n
    ys.append(h)
  return h, ys


def lstm(p, x, carry):
  """Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al."""
  (c, h), ys = carry, []
  w, u, b = p['input/kernel'], p['hidden/kernel'], p['input/bias']
  for x_t in x:
    i, f, g, o = (x_t @ w[:, k] + b[k] + h @ u[:, k] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    ys.append(h)
  return (c, h), ys


def lru(p, x, h):
  """Orvieto et al. (2023), arXiv 2303.06349, appendix A."""
  return linear_unit(
      np.exp(-np.exp(p['nu_log']) + 1j * np.exp(p['theta_log'])),
      np.exp(p['gamma_log']), p, x, h,
  )


def lru_polar(p, x, h):
  """The same, exp(-nu + i theta) without gamma: a row of table 2."""
  return linear_unit(np.exp(-p['nu'] + 1j * p['theta']), 1, p, x, h)


def lru_cartesian(p, x, h):
  """The same, lambda by its two parts, with gamma."""
  return linear_unit(
      p['Lambda_re'] + 1j * p['Lambda_im'], np.exp(p['gamma_log']), p, x, h
  )


def linear_unit(lambda_, gamma, p, x, h):
  b = p['B_re'] + 1j * p['B_im']
  c = p['C_re'] + 1j * p['C_im']
  ys = []
  for x_t in x:
    h = lambda_ * h + gamma * (x_t @ b.T)
    ys.append((h @ c.T).real + p['D'] * x_t)
  return h, ys


def min_gru_(p, x, h, g=positive):
  """Feng et al. (2024), arXiv 2410.01201, section 3.1; g of appendix B."""
  w, b, ys = p['gates/kernel'], p['gates/bias'], []
  for x_t in x:
    z = sigmoid(x_t @ w[:, 0] + b[0])
    h = (1 - z) * h + z * g(x_t @ w[:, 1] + b[1])
    ys.append(h @ p['output/kernel'] + p['output/bias'])
  return h, ys


def min_gru_plain(p, x, h):
  """The same, section 3.1, where the candidate is linear."""
  return min_gru_(p, x, h, g=lambda u: u)


def min_lstm(p, x, h):
  """Feng et al. (2024), arXiv 2410.01201, section 3.2."""
  w, b, ys = p['gates/kernel'], p['gates/bias'], []
  for x_t in x:
    f, i = (sigmoid(x_t @ w[:, k] + b[k]) for k in (0, 1))
    f, i = f / (f + i), i / (f + i)
    h = f * h + i * positive(x_t @ w[:, 2] + b[2])
    ys.append(h)
  return h, ys


def min_lstm_unnormalized(p, x, h):
  """The same without the division: the published configurations."""
  w, b, ys = p['gates/kernel'], p['gates/bias'], []
  for x_t in x:
    f, i = (sigmoid(x_t @ w[:, k] + b[k]) for k in (0, 1))
    h = f * h + i * positive(x_t @ w[:, 2] + b[2])
    ys.append(h)
  return h, ys


def heads_input(p, x_t):
  """`B x + b` of ParaRNN: each head maps its inputs to its units."""
  parts = np.split(x_t, p['B'].shape[0], axis=1)
  heads = [np.einsum('bi,igj->bgj', u, w) for u, w in zip(parts, p['B'])]
  return np.moveaxis(np.concatenate(heads, axis=2) + p['b'], 1, 0)


def para_gru(p, x, h):
  """Danieli et al. (2025), arXiv 2510.21450: the diagonal GRU."""
  a, ys = p['A'], []
  for x_t in x:
    u = heads_input(p, x_t)
    z, r = sigmoid(a[0] * h + u[0]), sigmoid(a[1] * h + u[1])
    h = z * np.tanh(a[2] * h * r + u[2]) + (1 - z) * h
    ys.append(h)
  return h, ys


def para_lstm(p, x, carry):
  """The same, the diagonal LSTM with one gate for input and forgetting."""
  (c, h), ys = carry, []
  a, peephole = p['A'], p['C']
  for x_t in x:
    u = heads_input(p, x_t)
    f = sigmoid(a[0] * h + peephole[0] * c + u[0])
    c = f * c + (1 - f) * np.tanh(a[2] * h + u[2])
    h = sigmoid(a[1] * h + peephole[1] * c + u[1]) * np.tanh(c)
    ys.append(h)
  return (c, h), ys


def linoss(p, x, carry, explicit=False):
  """Rusch, Rus (2025), arXiv 2410.03943, section 2.2."""
  A = np.maximum(p['A_diag'], 0)
  return oscillators(p, x, carry, A, np.zeros_like(A), not explicit)


def linoss_imex(p, x, carry):
  """The same, the implicit-explicit rule."""
  return linoss(p, x, carry, explicit=True)


def d_linoss(p, x, carry):
  """Boyer et al. (2025), arXiv 2505.12171, with the limits of A."""
  dt, G = sigmoid(p['steps']), np.maximum(p['G_diag'], 0)
  width = 2 * np.sqrt(1 + dt * G)
  A = np.clip(
      p['A_diag'], (2 + dt * G - width) / dt**2, (2 + dt * G + width) / dt**2
  )
  return oscillators(p, x, carry, A, G, implicit=False)


def oscillators(p, x, carry, A, G, implicit):
  """`y'' = -A y - G y' + B x` step by step, z being y'."""
  (z, y), ys = carry, []
  dt = sigmoid(p['steps'])
  B, C = (p[u][..., 0] + 1j * p[u][..., 1] for u in 'BC')
  for x_t in x:
    force = x_t @ B.T
    if implicit:
      y = (y + dt * z + dt**2 * force) / (1 + dt**2 * A)
      z = z + dt * (force - A * y)
    else:
      z = (z + dt * (force - A * y)) / (1 + dt * G)
      y = y + dt * z
    ys.append((y @ C.T).real + p['D'] * x_t)
  return (z, y), ys


def signed_min_gru(p, x, h, coupled=False):
  """The signed minGRU of mingru-scans."""
  w, b, ys = p['gates/kernel'], p['gates/bias'], []
  for x_t in x:
    z, s, v = (x_t @ w[:, k] + b[k] for k in range(3))
    z, a = sigmoid(z), np.tanh(s)
    h = ((1 - z) * a if coupled else a) * h + z * v
    ys.append(h)
  return h, ys


def signed_min_gru_coupled(p, x, h):
  """The same, the decay within 1 - z."""
  return signed_min_gru(p, x, h, coupled=True)


_DENSE = dict(
    hidden_init='glorot_normal', use_bias=False, use_projection=True
)


class TranscriptionTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('elman', elman, layers.Elman, {}),
      ('dense_rnn', dense_rnn, layers.Elman,
       dict(_DENSE, activation='none', hidden_features=3)),
      ('dense_rnn_relu', dense_rnn_relu, layers.Elman,
       dict(_DENSE, activation='relu')),
      ('gru', gru, layers.GRU, {}),
      ('gru_reset_before', gru_reset_before, layers.GRU,
       dict(reset_after=False)),
      ('lstm', lstm, layers.LSTM, {}),
      ('lru', lru, layers.LRU, dict(r_min=0.4, r_max=0.9)),
      ('lru_polar', lru_polar, layers.LRU,
       dict(parametrization='polar', use_gamma=False)),
      ('lru_cartesian', lru_cartesian, layers.LRU,
       dict(parametrization='cartesian', r_max=0.9)),
      ('min_gru', min_gru_, layers.MinGRU, dict(expansion_factor=1.5)),
      ('min_gru_plain', min_gru_plain, layers.MinGRU,
       dict(activation_fn=min_gru.identity, use_projection=True)),
      ('min_lstm', min_lstm, layers.MinLSTM, {}),
      ('min_lstm_unnormalized', min_lstm_unnormalized, layers.MinLSTM,
       dict(normalize=False)),
      ('d_linoss', d_linoss, layers.DLinOSS, dict(state_features=5)),
      ('linoss', linoss, layers.LinOSS, dict(state_features=5)),
      ('linoss_imex', linoss_imex, layers.LinOSS,
       dict(state_features=5, discretization='imex')),
      ('para_gru', para_gru, layers.ParaGRU, dict(num_heads=2)),
      ('para_lstm', para_lstm, layers.ParaLSTM, dict(num_heads=2)),
      ('signed_min_gru', signed_min_gru, layers.SignedMinGRU, {}),
      ('signed_min_gru_coupled', signed_min_gru_coupled, layers.SignedMinGRU,
       dict(coupled=True)),
  )
  def test_equals_a_loop_in_numpy(self, equations, layer, options):
    transcription.check(
        equations, lambda rngs: layer(4, **options, rngs=rngs)
    )
