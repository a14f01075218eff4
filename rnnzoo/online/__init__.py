r"""Online learning: gradients of the past without back-propagation through
time.

In a diagonal recurrence `h_t = a_t * h_{t-1} + b_t` a parameter of a channel
affects that channel only. So the sensitivity of the state follows the
recurrence of the state,

.. math::
    S_t = \frac{d h_t}{d \theta}
        = a_t S_{t-1} + \frac{\partial h_t}{\partial \theta},

and has as many numbers as there are parameters (times the batch). With it, the
gradient of the loss of token `t` through the whole past is

.. math::
    \frac{d l_t}{d \theta} = \frac{\partial l_t}{\partial \theta}
        + \frac{\partial l_t}{\partial h_{t-1}} S_{t-1},

where both partial derivatives are those of one step. This is real-time
recurrent learning (Williams & Zipser, 1989). For a recurrence that is not
diagonal it costs `H` times more. See Zucchet et al. (2023),
https://arxiv.org/abs/2305.15947.

With constant parameters, the gradients of `RTRL` are:

* exact for a recurrent layer and the parts after it, if no other recurrent
  layer comes after it: equal to back-propagation through time;
* truncated in space for the parts before the layer: their effect on earlier
  states is left out, unless `exact_before` is set, which needs `H` times their
  size in memory;
* truncated in space for a recurrent layer below another one. `gradient_error`
  measures the error.

An example: predict eight sine waves, one token at a time.

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

from rnnzoo.online.comparing import full_gradient as full_gradient
from rnnzoo.online.comparing import gradient_error as gradient_error
from rnnzoo.online.comparing import online_gradient as online_gradient
from rnnzoo.online.recursive_least_squares import least_squares as least_squares
from rnnzoo.online.rtrl import RTRL as RTRL
from rnnzoo.online.rtrl import RTRLState as RTRLState
from rnnzoo.online.rtrl import learn as learn
from rnnzoo.online.srnn import SRNN as SRNN
from rnnzoo.online.srnn import SRNNState as SRNNState
from rnnzoo.online.stack import Stack as Stack
from rnnzoo.online.truncated import Truncated as Truncated
from rnnzoo.online.truncated import TruncatedState as TruncatedState
