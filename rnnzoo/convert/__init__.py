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

from rnnzoo.convert.families import FAMILIES
from rnnzoo.convert.loading import Pretrained
from rnnzoo.convert.loading import load_pretrained
from rnnzoo.convert.loading import open_pretrained
from rnnzoo.convert.saving import save_pretrained

__all__ = [
    'FAMILIES', 'Pretrained', 'load_pretrained', 'open_pretrained',
    'save_pretrained',
]
