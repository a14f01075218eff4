r"""Learning while the sequence goes on, without going back through time.

In a diagonal recurrence `h_t = a_t * h_{t-1} + b_t` a parameter of channel `h`
reaches that channel alone, so that the sensitivity of the state follows the
recurrence of the state,

.. math::
    S_t = \frac{d h_t}{d \theta}
        = a_t S_{t-1} + \frac{\partial h_t}{\partial \theta},

in as many numbers as there are parameters (times the batch). With it, the
gradient of the loss of token `t` through all of the past is

.. math::
    \frac{d l_t}{d \theta} = \frac{\partial l_t}{\partial \theta}
        + \frac{\partial l_t}{\partial h_{t-1}} S_{t-1},

where both partial derivatives are those of one step. This is real-time
recurrent learning (Williams & Zipser, 1989), which costs `H` times more for a
recurrence that is not diagonal. See Zucchet et al. (2023),
https://arxiv.org/abs/2305.15947.

How exact `RTRL` is, the parameters held still:

* those of a recurrent layer and of what comes after it: exactly the gradient of
  back-propagation through time, if no other recurrent layer comes after it;
* those of what comes before the layer: the past that only they have shaped is
  left out ("spatially truncated"), unless `exact_before`, at `H` times their
  size in memory;
* in a stack, a layer whose outputs another one remembers: spatially truncated,
  too. `gradient_error` says by how much.

An example: eight sine waves, predicted a token at a time.

>>> from flax import nnx
>>> import jax
>>> import jax.numpy as jnp
>>> import optax
>>> from rnnzoo import layers
>>> rngs = nnx.Rngs(0)
>>> model = Stack(layers.LRU(1, 8, rngs=rngs), nnx.Linear(1, 1, rngs=rngs))
>>> learner = RTRL(model, lambda y, target: ((y - target) ** 2).mean())
>>> phase = jnp.arange(8.0)[:, None]
>>> wave = jnp.sin(0.3 * jnp.arange(301) + phase)[..., None]   # [B, T + 1, 1]
>>> trained, loss = learn(
...     learner, optax.adam(1e-2), learner.params, wave[:, :-1], wave[:, 1:]
... )
>>> bool(loss[:50].mean() > 0.01), bool(loss[-50:].mean() < 1e-3)
(True, True)
>>> carry, y = learner.merge(trained)(wave[:, :-1])            # All at once.
"""

from rnnzoo.online.rtrl import RTRL as RTRL
from rnnzoo.online.rtrl import RTRLState as RTRLState
from rnnzoo.online.rtrl import full_gradient as full_gradient
from rnnzoo.online.rtrl import gradient_error as gradient_error
from rnnzoo.online.rtrl import learn as learn
from rnnzoo.online.rtrl import online_gradient as online_gradient
from rnnzoo.online.srnn import SRNN as SRNN
from rnnzoo.online.srnn import SRNNState as SRNNState
from rnnzoo.online.stack import Stack as Stack
