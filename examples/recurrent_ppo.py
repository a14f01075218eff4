"""PPO learns to repeat a cue after ten steps: recurrent_ppo.py [UPDATES]."""
import sys

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from rnnzoo import layers

rngs, B, T, DELAY, WIDTH = nnx.Rngs(0), 64, 44, 10, 32
memory = layers.MinGRU(WIDTH, rngs=rngs)
encoder = nnx.Linear(2, WIDTH, rngs=rngs)
heads = nnx.Linear(WIDTH, 3, rngs=rngs)  # Two actions and a value.
graph, params = nnx.split(nnx.List([encoder, memory, heads]))
tx = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-3))


def act(params, carry, t, key):  # One step of all environments.
  encoder, memory, heads = nnx.merge(graph, params)
  (state, cue), phase, keys = carry, t % (DELAY + 1), jax.random.split(key)
  cue = jnp.where(phase == 0, jax.random.bernoulli(keys[0], shape=(B,)), cue)
  seen = jnp.where(phase == 0, 2.0 * cue - 1, 0)
  x = jnp.stack([seen, jnp.full(B, phase / DELAY)], axis=1)
  reset = jnp.full(B, phase == 0)  # An episode starts.
  state, y = memory.step(state, encoder(x), reset=reset)
  action = jax.random.categorical(keys[1], heads(y)[:, :2])
  reward = jnp.where(phase == DELAY, 1.0 * (action == cue), 0.0)
  return (state, cue), (x, reset, action, heads(y), reward)


def loss(params, x, reset, action, old, advantage, returns):
  encoder, memory, heads = nnx.merge(graph, params)
  out = heads(memory(encoder(x), reset=reset)[1])  # All steps in parallel.
  taken = action[..., None] == jnp.arange(2)
  log_p = lambda u: (jax.nn.log_softmax(u[..., :2]) * taken).sum(-1)
  ratio = jnp.exp(log_p(out) - log_p(old))
  gain = jnp.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage)
  return (0.5 * jnp.square(out[..., 2] - returns) - gain).mean()


@jax.jit
def update(params, opt_state, key):
  start = memory.initialize_carry(B), jnp.zeros(B, bool)
  step = lambda carry, t: act(params, carry, t, jax.random.fold_in(key, t))
  played = jax.lax.scan(step, start, jnp.arange(T))[1]
  x, reset, action, out, reward = (u.swapaxes(0, 1) for u in played)
  returns = jnp.repeat(reward[:, DELAY :: DELAY + 1], DELAY + 1, axis=1)
  advantage = returns - out[..., 2]
  batch = x, reset, action, out, advantage / (advantage.std() + 1e-6), returns
  for _ in range(4):
    updates, opt_state = tx.update(jax.grad(loss)(params, *batch), opt_state)
    params = optax.apply_updates(params, updates)
  return params, opt_state, returns.mean()


opt_state, count = tx.init(params), int((sys.argv + ['100'])[1])
for i in range(count):
  params, opt_state, score = update(params, opt_state, jax.random.key(i))
  if (i + 1) % 20 == 0 or i + 1 == count:
    print(f'update {i + 1}: right {score:.0%} of the time', flush=True)
