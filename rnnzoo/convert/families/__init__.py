"""The families of pretrained models, one a file, by their `model_type`."""

from rnnzoo.convert.families import falcon_mamba
from rnnzoo.convert.families import mamba
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families import recurrent_gemma
from rnnzoo.convert.families import rwkv
from rnnzoo.convert.families import xlstm
from rnnzoo.convert.families.family import Family

FAMILIES: dict[str, Family] = dict(
    falcon_mamba=falcon_mamba.FAMILY,
    mamba=mamba.FAMILY,
    mamba2=mamba2.FAMILY,
    recurrent_gemma=recurrent_gemma.FAMILY,
    rwkv=rwkv.FAMILY,
    xlstm=xlstm.FAMILY,
)
