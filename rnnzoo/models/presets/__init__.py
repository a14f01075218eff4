"""Published models by name, as configs of the one backbone, and a few of ours.

There is one file for each family. The size of the vocabulary and the number of
classes belong to the data, so most presets leave them open:

>>> from flax import nnx
>>> import jax
>>> from rnnzoo import models
>>> config = PRESETS['mamba_130m'].replace(vocab_size=50_280)
>>> model = nnx.eval_shape(
...     lambda: models.LanguageModel(config, rngs=nnx.Rngs(0))
... )
>>> sum(u.size for u in jax.tree.leaves(nnx.state(model, nnx.Param)))
129135360
"""

from rnnzoo.models.config import ModelConfig
from rnnzoo.models.presets import bamba
from rnnzoo.models.presets import falcon_h1
from rnnzoo.models.presets import granite
from rnnzoo.models.presets import griffin
from rnnzoo.models.presets import hybrids
from rnnzoo.models.presets import jamba
from rnnzoo.models.presets import kimi_linear
from rnnzoo.models.presets import lfm2
from rnnzoo.models.presets import lmu
from rnnzoo.models.presets import lru
from rnnzoo.models.presets import mamba
from rnnzoo.models.presets import mamba3
from rnnzoo.models.presets import min_rnn
from rnnzoo.models.presets import minimax
from rnnzoo.models.presets import nemotron_h
from rnnzoo.models.presets import olmo_hybrid
from rnnzoo.models.presets import qwen3_5
from rnnzoo.models.presets import qwen3_next
from rnnzoo.models.presets import rwkv
from rnnzoo.models.presets import s4
from rnnzoo.models.presets import s5
from rnnzoo.models.presets import transformer
from rnnzoo.models.presets import xlstm
from rnnzoo.models.presets import zamba2

PRESETS: dict[str, ModelConfig] = {
    **bamba.PRESETS,
    **falcon_h1.PRESETS,
    **granite.PRESETS,
    **griffin.PRESETS,
    **hybrids.PRESETS,
    **jamba.PRESETS,
    **kimi_linear.PRESETS,
    **lfm2.PRESETS,
    **lmu.PRESETS,
    **lru.PRESETS,
    **mamba.PRESETS,
    **mamba3.PRESETS,
    **min_rnn.PRESETS,
    **minimax.PRESETS,
    **nemotron_h.PRESETS,
    **olmo_hybrid.PRESETS,
    **qwen3_5.PRESETS,
    **qwen3_next.PRESETS,
    **rwkv.PRESETS,
    **s4.PRESETS,
    **s5.PRESETS,
    **transformer.PRESETS,
    **xlstm.PRESETS,
    **zamba2.PRESETS,
}
