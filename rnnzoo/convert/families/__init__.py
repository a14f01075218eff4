"""The families of pretrained models, one a file, by their `model_type`."""

from rnnzoo.convert.families import bamba
from rnnzoo.convert.families import falcon_h1
from rnnzoo.convert.families import falcon_mamba
from rnnzoo.convert.families import granitemoehybrid
from rnnzoo.convert.families import jamba
from rnnzoo.convert.families import kimi_linear
from rnnzoo.convert.families import lfm2
from rnnzoo.convert.families import mamba
from rnnzoo.convert.families import mamba2
from rnnzoo.convert.families import minimax
from rnnzoo.convert.families import nemotron_h
from rnnzoo.convert.families import olmo_hybrid
from rnnzoo.convert.families import qwen3_5_text
from rnnzoo.convert.families import qwen3_next
from rnnzoo.convert.families import recurrent_gemma
from rnnzoo.convert.families import rwkv
from rnnzoo.convert.families import xlstm
from rnnzoo.convert.families import zamba2
from rnnzoo.convert.families.family import Family

FAMILIES: dict[str, Family] = dict(
    bamba=bamba.FAMILY,
    falcon_h1=falcon_h1.FAMILY,
    falcon_mamba=falcon_mamba.FAMILY,
    granitemoehybrid=granitemoehybrid.FAMILY,
    jamba=jamba.FAMILY,
    kimi_linear=kimi_linear.FAMILY,
    lfm2=lfm2.FAMILY,
    mamba=mamba.FAMILY,
    mamba2=mamba2.FAMILY,
    minimax=minimax.FAMILY,
    nemotron_h=nemotron_h.FAMILY,
    olmo_hybrid=olmo_hybrid.FAMILY,
    qwen3_5_text=qwen3_5_text.FAMILY,
    qwen3_next=qwen3_next.FAMILY,
    recurrent_gemma=recurrent_gemma.FAMILY,
    rwkv=rwkv.FAMILY,
    xlstm=xlstm.FAMILY,
    zamba2=zamba2.FAMILY,
)
# Models that read images too, and the family of their part that reads text.
WITH_IMAGES: dict[str, str] = dict(qwen3_5='qwen3_5_text')
