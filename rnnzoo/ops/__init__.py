"""Floor 0: functions of arrays. No Flax, no parameters, no config."""

from rnnzoo.ops.causal_conv1d import causal_conv1d as causal_conv1d
from rnnzoo.ops.causal_conv1d import causal_conv1d_step as causal_conv1d_step
from rnnzoo.ops.gated_scan import Gate as Gate
from rnnzoo.ops.gated_scan import gated_scan as gated_scan
from rnnzoo.ops.gated_scan import identity as identity
from rnnzoo.ops.gated_scan import min_gru_gate as min_gru_gate
from rnnzoo.ops.gated_scan import min_lstm_gate as min_lstm_gate
from rnnzoo.ops.gated_scan import positive as positive
from rnnzoo.ops.gated_scan import rg_lru_gate as rg_lru_gate
from rnnzoo.ops.linear_scan.api import linear_scan as linear_scan
from rnnzoo.ops.linear_scan.core import Implementation as Implementation
from rnnzoo.ops.linear_scan.core import implementation as implementation
from rnnzoo.ops.log_linear_scan import log_linear_scan as log_linear_scan
