"""More tokens from a model: the prompt in parallel, then one step a token.

A model has `model(tokens, carry, mask=) -> (carry, logits)`,
`model.step(carry, tokens) -> (carry, logits)` and
`model.initialize_carry(rows)`, and is a pytree, as all Flax NNX modules are:
`rnnzoo.models.LanguageModel`, for one.

>>> from flax import nnx
>>> from rnnzoo import generation, models
>>> model = models.LanguageModel(models.ModelConfig.tiny(), rngs=nnx.Rngs(0))
>>> prompts, mask = generation.pad([[1, 2, 3], [4]])
>>> generation.generate(
...     model, prompts, mask=mask, length=5, temperature=0
... ).shape
(2, 5)
"""

from rnnzoo.generation.prompts import pad
from rnnzoo.generation.sampling import Sampling
from rnnzoo.generation.sampling import sample_logits
from rnnzoo.generation.writing import Writer
from rnnzoo.generation.writing import generate
from rnnzoo.generation.writing import room
from rnnzoo.generation.writing import stream

__all__ = [
    'Sampling', 'Writer', 'generate', 'pad', 'room', 'sample_logits', 'stream',
]
