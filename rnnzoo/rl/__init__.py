"""Reinforcement learning with recurrent policies: PPO.

`PPO` is the learner, whose functions may be jitted; `train` is a whole run with
metrics and checkpoints, which `python -m experiments.ppo` starts.
"""

from rnnzoo.rl.distributions import Categorical as Categorical
from rnnzoo.rl.distributions import Gaussian as Gaussian
from rnnzoo.rl.loop import train as train
from rnnzoo.rl.memoryless import Memoryless as Memoryless
from rnnzoo.rl.ppo import PPO as PPO
from rnnzoo.rl.saved import evaluate_saved as evaluate_saved
from rnnzoo.rl.saved import restore_best as restore_best
