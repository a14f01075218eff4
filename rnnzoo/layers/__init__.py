"""Floor 1: one architecture a file, one contract for all (`base.py`)."""

from rnnzoo.layers.aaren import Aaren as Aaren
from rnnzoo.layers.aaren import AarenCarry as AarenCarry
from rnnzoo.layers.adapters import as_rnn_cell as as_rnn_cell
from rnnzoo.layers.adapters import time_major as time_major
from rnnzoo.layers.attention import Attention as Attention
from rnnzoo.layers.attention import AttentionCarry as AttentionCarry
from rnnzoo.layers.base import RecurrentLayer as RecurrentLayer
from rnnzoo.layers.batching import mask_from_lengths as mask_from_lengths
from rnnzoo.layers.batching import pack as pack
from rnnzoo.layers.batching import reset_from_done as reset_from_done
from rnnzoo.layers.batching import (
    reset_from_segment_ids as reset_from_segment_ids,
)
from rnnzoo.layers.carries import batch_axes as batch_axes
from rnnzoo.layers.carries import put_rows as put_rows
from rnnzoo.layers.carries import take_rows as take_rows
from rnnzoo.layers.carry_files import load_carry as load_carry
from rnnzoo.layers.carry_files import save_carry as save_carry
from rnnzoo.layers.cg_lru import CGLRU as CGLRU
from rnnzoo.layers.comba import Comba as Comba
from rnnzoo.layers.conv_lstm import ConvLSTM as ConvLSTM
from rnnzoo.layers.conv_lstm import ConvLSTMCarry as ConvLSTMCarry
from rnnzoo.layers.conv_s5 import ConvS5 as ConvS5
from rnnzoo.layers.d_linoss import DLinOSS as DLinOSS
from rnnzoo.layers.delta_net import DeltaNet as DeltaNet
from rnnzoo.layers.delta_net import DeltaNetCarry as DeltaNetCarry
from rnnzoo.layers.directions import Bidirectional as Bidirectional
from rnnzoo.layers.directions import BidirectionalCarry as BidirectionalCarry
from rnnzoo.layers.directions import Reverse as Reverse
from rnnzoo.layers.elman import Elman as Elman
from rnnzoo.layers.gated_attention import GatedAttention as GatedAttention
from rnnzoo.layers.gated_delta_net import GatedDeltaNet as GatedDeltaNet
from rnnzoo.layers.gated_delta_net2 import GatedDeltaNet2 as GatedDeltaNet2
from rnnzoo.layers.gated_delta_product import (
    GatedDeltaProduct as GatedDeltaProduct,
)
from rnnzoo.layers.gla import GLA as GLA
from rnnzoo.layers.griffin import GriffinBlock as GriffinBlock
from rnnzoo.layers.griffin import GriffinCarry as GriffinCarry
from rnnzoo.layers.gru import GRU as GRU
from rnnzoo.layers.hgrn import HGRN as HGRN
from rnnzoo.layers.hgrn2 import HGRN2 as HGRN2
from rnnzoo.layers.kda import KDA as KDA
from rnnzoo.layers.latent_attention import LatentAttention as LatentAttention
from rnnzoo.layers.lightning_attention import (
    LightningAttention as LightningAttention,
)
from rnnzoo.layers.linear_attention import LinearAttention as LinearAttention
from rnnzoo.layers.linoss import LinOSS as LinOSS
from rnnzoo.layers.lmu import LMU as LMU
from rnnzoo.layers.lmu import LMUCarry as LMUCarry
from rnnzoo.layers.log_linear_gated_delta_net import (
    LogLinearGatedDeltaNet as LogLinearGatedDeltaNet,
)
from rnnzoo.layers.log_linear_mamba2 import LogLinearMamba2 as LogLinearMamba2
from rnnzoo.layers.lru import LRU as LRU
from rnnzoo.layers.lstm import LSTM as LSTM
from rnnzoo.layers.lstm import LSTMCarry as LSTMCarry
from rnnzoo.layers.m2rnn import M2RNN as M2RNN
from rnnzoo.layers.m2rnn import M2RNNCarry as M2RNNCarry
from rnnzoo.layers.mamba import Mamba as Mamba
from rnnzoo.layers.mamba import MambaCarry as MambaCarry
from rnnzoo.layers.mamba2 import Mamba2 as Mamba2
from rnnzoo.layers.mamba2 import Mamba2Carry as Mamba2Carry
from rnnzoo.layers.mamba3 import Mamba3 as Mamba3
from rnnzoo.layers.mamba3 import Mamba3Carry as Mamba3Carry
from rnnzoo.layers.mesa_net import MesaNet as MesaNet
from rnnzoo.layers.mesa_net import MesaNetCarry as MesaNetCarry
from rnnzoo.layers.min_gru import MinGRU as MinGRU
from rnnzoo.layers.min_lstm import MinLSTM as MinLSTM
from rnnzoo.layers.mlstm import MLSTM as MLSTM
from rnnzoo.layers.mlstm_block import MLSTMBlock as MLSTMBlock
from rnnzoo.layers.mlstm_block import MLSTMBlockCarry as MLSTMBlockCarry
from rnnzoo.layers.mlstm_large import MLSTMLarge as MLSTMLarge
from rnnzoo.layers.oscillators import OscillatorCarry as OscillatorCarry
from rnnzoo.layers.para_gru import ParaGRU as ParaGRU
from rnnzoo.layers.para_lstm import ParaLSTM as ParaLSTM
from rnnzoo.layers.parallel import Parallel as Parallel
from rnnzoo.layers.parallel import ParallelCarry as ParallelCarry
from rnnzoo.layers.parallel_lmu import ParallelLMU as ParallelLMU
from rnnzoo.layers.recurrences import LinearRecurrence as LinearRecurrence
from rnnzoo.layers.recurrences import RecurrentCell as RecurrentCell
from rnnzoo.layers.recurrences import TimedRecurrence as TimedRecurrence
from rnnzoo.layers.ret_net import RetNet as RetNet
from rnnzoo.layers.ret_net import RetNetCarry as RetNetCarry
from rnnzoo.layers.rg_lru import RGLRU as RGLRU
from rnnzoo.layers.rg_lru import RGLRUCarry as RGLRUCarry
from rnnzoo.layers.rwkv4 import RWKV4 as RWKV4
from rnnzoo.layers.rwkv4 import RWKV4Carry as RWKV4Carry
from rnnzoo.layers.rwkv4_channel_mix import RWKV4ChannelMix as RWKV4ChannelMix
from rnnzoo.layers.rwkv6 import RWKV6 as RWKV6
from rnnzoo.layers.rwkv6 import RWKV6Carry as RWKV6Carry
from rnnzoo.layers.rwkv7 import RWKV7 as RWKV7
from rnnzoo.layers.rwkv7 import RWKV7Carry as RWKV7Carry
from rnnzoo.layers.rwkv7_channel_mix import RWKV7ChannelMix as RWKV7ChannelMix
from rnnzoo.layers.s4 import S4 as S4
from rnnzoo.layers.s4d import S4D as S4D
from rnnzoo.layers.s5 import S5 as S5
from rnnzoo.layers.sgru import SGRU as SGRU
from rnnzoo.layers.short_conv import ShortConv as ShortConv
from rnnzoo.layers.short_conv import ShortConvCarry as ShortConvCarry
from rnnzoo.layers.signed_min_gru import SignedMinGRU as SignedMinGRU
from rnnzoo.layers.slstm import SLSTM as SLSTM
from rnnzoo.layers.slstm import SLSTMCarry as SLSTMCarry
from rnnzoo.layers.slstm_block import SLSTMBlock as SLSTMBlock
from rnnzoo.layers.slstm_block import SLSTMBlockCarry as SLSTMBlockCarry
from rnnzoo.layers.tfc_sgru import TFCSGRU as TFCSGRU
from rnnzoo.layers.tfc_sgru import TFCSGRUCarry as TFCSGRUCarry
from rnnzoo.layers.tt_gru import TTGRU as TTGRU
from rnnzoo.layers.tt_lstm import TTLSTM as TTLSTM

# By the names used in configs, one per architecture.
LAYERS = dict(
    aaren=Aaren,
    attention=Attention,
    cg_lru=CGLRU,
    comba=Comba,
    conv_lstm=ConvLSTM,
    conv_s5=ConvS5,
    d_linoss=DLinOSS,
    delta_net=DeltaNet,
    elman=Elman,
    gated_attention=GatedAttention,
    gated_delta_net=GatedDeltaNet,
    gated_delta_net2=GatedDeltaNet2,
    gated_delta_product=GatedDeltaProduct,
    gla=GLA,
    griffin=GriffinBlock,
    gru=GRU,
    hgrn=HGRN,
    hgrn2=HGRN2,
    kda=KDA,
    latent_attention=LatentAttention,
    lightning_attention=LightningAttention,
    linear_attention=LinearAttention,
    linoss=LinOSS,
    lmu=LMU,
    log_linear_gated_delta_net=LogLinearGatedDeltaNet,
    log_linear_mamba2=LogLinearMamba2,
    lru=LRU,
    lstm=LSTM,
    m2rnn=M2RNN,
    mamba=Mamba,
    mamba2=Mamba2,
    mamba3=Mamba3,
    mesa_net=MesaNet,
    min_gru=MinGRU,
    min_lstm=MinLSTM,
    mlstm=MLSTM,
    mlstm_block=MLSTMBlock,
    mlstm_large=MLSTMLarge,
    para_gru=ParaGRU,
    para_lstm=ParaLSTM,
    parallel_lmu=ParallelLMU,
    ret_net=RetNet,
    rg_lru=RGLRU,
    rwkv4=RWKV4,
    rwkv4_channel_mix=RWKV4ChannelMix,
    rwkv6=RWKV6,
    rwkv7=RWKV7,
    rwkv7_channel_mix=RWKV7ChannelMix,
    s4=S4,
    s4d=S4D,
    s5=S5,
    sgru=SGRU,
    short_conv=ShortConv,
    signed_min_gru=SignedMinGRU,
    slstm=SLSTM,
    slstm_block=SLSTMBlock,
    tfc_sgru=TFCSGRU,
    tt_gru=TTGRU,
    tt_lstm=TTLSTM,
)
