"""Pretrained weights of Hugging Face in, our models out, and back.

>>> from rnnzoo import convert
>>> model = convert.load_pretrained('mamba-130m-hf')   # doctest: +SKIP
>>> carry, logits = model(tokens)                      # doctest: +SKIP
>>> convert.save_pretrained(model, 'mine')             # doctest: +SKIP

It reads a local folder: `config.json` and `*.safetensors`. PyTorch is not
needed, and nothing is unpickled. A family of models is one file in
`convert/families`: what its `config.json` means, and which tensor is which
parameter.
"""

from rnnzoo.convert.chat import ChatTemplate
from rnnzoo.convert.chat import chat_template
from rnnzoo.convert.families import FAMILIES
from rnnzoo.convert.loading import Pretrained
from rnnzoo.convert.loading import is_pretrained
from rnnzoo.convert.loading import load_pretrained
from rnnzoo.convert.loading import open_pretrained
from rnnzoo.convert.loading import pretrained_config
from rnnzoo.convert.saving import save_pretrained

__all__ = [
    'ChatTemplate', 'FAMILIES', 'Pretrained', 'chat_template', 'is_pretrained',
    'load_pretrained', 'open_pretrained', 'pretrained_config',
    'save_pretrained',
]
