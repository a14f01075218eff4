"""Floor 0: functions of arrays. No Flax, no parameters, no config."""

from rnnzoo.mesh import run_per_device as run_per_device
from rnnzoo.mesh import spans_devices as spans_devices
from rnnzoo.ops.attention_cache import AttentionCache as AttentionCache
from rnnzoo.ops.attention_cache import (
    empty_attention_cache as empty_attention_cache,
)
from rnnzoo.ops.attention_cache import sequence_positions as sequence_positions
from rnnzoo.ops.block_scan import block_scan as block_scan
from rnnzoo.ops.causal_conv1d import causal_conv1d as causal_conv1d
from rnnzoo.ops.causal_conv1d import causal_conv1d_step as causal_conv1d_step
from rnnzoo.ops.delta_product import delta_product as delta_product
from rnnzoo.ops.delta_product import delta_product_step as delta_product_step
from rnnzoo.ops.delta_rule import delta_rule as delta_rule
from rnnzoo.ops.delta_rule import delta_rule_step as delta_rule_step
from rnnzoo.ops.dplr import decayed as decayed
from rnnzoo.ops.dplr import dplr_scan as dplr_scan
from rnnzoo.ops.dplr import dplr_step as dplr_step
from rnnzoo.ops.expert_mlp import expert_mlp as expert_mlp
from rnnzoo.ops.fenwick import MOST_LEVELS as MOST_LEVELS
from rnnzoo.ops.fenwick import LevelState as LevelState
from rnnzoo.ops.fenwick import empty_level_state as empty_level_state
from rnnzoo.ops.fft_conv import fft_conv as fft_conv
from rnnzoo.ops.gated_scan import Gate as Gate
from rnnzoo.ops.gated_scan import gated_scan as gated_scan
from rnnzoo.ops.gated_scan import log_decay_gate as log_decay_gate
from rnnzoo.ops.group_products import grouped_product as grouped_product
from rnnzoo.ops.linear_attention import linear_attention as linear_attention
from rnnzoo.ops.linear_attention import (
    linear_attention_step as linear_attention_step,
)
from rnnzoo.ops.linear_scan.api import linear_scan as linear_scan
from rnnzoo.ops.linear_scan.dispatch import Implementation as Implementation
from rnnzoo.ops.linear_scan.dispatch import implementation as implementation
from rnnzoo.ops.local_attention import extended_cache as extended_cache
from rnnzoo.ops.local_attention import local_attention as local_attention
from rnnzoo.ops.local_attention import (
    local_attention_step as local_attention_step,
)
from rnnzoo.ops.log_linear_attention import (
    log_linear_attention as log_linear_attention,
)
from rnnzoo.ops.log_linear_attention import (
    log_linear_attention_step as log_linear_attention_step,
)
from rnnzoo.ops.log_linear_delta_rule import (
    log_linear_delta_rule as log_linear_delta_rule,
)
from rnnzoo.ops.log_linear_delta_rule import (
    log_linear_delta_rule_step as log_linear_delta_rule_step,
)
from rnnzoo.ops.log_linear_scan import log_linear_scan as log_linear_scan
from rnnzoo.ops.lti_scan import lti_scan as lti_scan
from rnnzoo.ops.max_plus_scan import max_plus_scan as max_plus_scan
from rnnzoo.ops.mesa import MesaState as MesaState
from rnnzoo.ops.mesa import empty_mesa_state as empty_mesa_state
from rnnzoo.ops.mesa import mesa_scan as mesa_scan
from rnnzoo.ops.mesa import mesa_step as mesa_step
from rnnzoo.ops.mlstm import MLSTMState as MLSTMState
from rnnzoo.ops.mlstm import empty_mlstm_state as empty_mlstm_state
from rnnzoo.ops.mlstm import mlstm as mlstm
from rnnzoo.ops.mlstm import mlstm_step as mlstm_step
from rnnzoo.ops.newton_scan import newton_scan as newton_scan
from rnnzoo.ops.rows import map_rows as map_rows
from rnnzoo.ops.rows import spread_rows as spread_rows
from rnnzoo.ops.rows import vary_together as vary_together
from rnnzoo.ops.rows import whole_rows as whole_rows
from rnnzoo.ops.selective_scan import selective_scan as selective_scan
from rnnzoo.ops.softmax_scan import SoftmaxState as SoftmaxState
from rnnzoo.ops.softmax_scan import empty_softmax_state as empty_softmax_state
from rnnzoo.ops.softmax_scan import softmax_last as softmax_last
from rnnzoo.ops.softmax_scan import softmax_scan as softmax_scan
from rnnzoo.ops.wkv import WKVState as WKVState
from rnnzoo.ops.wkv import empty_wkv_state as empty_wkv_state
from rnnzoo.ops.wkv import wkv as wkv
from rnnzoo.ops.wkv import wkv_step as wkv_step
