"""Floor 1: one architecture a file, one contract for all (`base.py`)."""

from rnnzoo.layers.base import LinearRecurrence as LinearRecurrence
from rnnzoo.layers.base import RecurrentCell as RecurrentCell
from rnnzoo.layers.base import RecurrentLayer as RecurrentLayer
from rnnzoo.layers.elman import Elman as Elman
from rnnzoo.layers.gru import GRU as GRU
from rnnzoo.layers.lru import LRU as LRU
from rnnzoo.layers.lstm import LSTM as LSTM
from rnnzoo.layers.lstm import LSTMCarry as LSTMCarry
from rnnzoo.layers.min_gru import MinGRU as MinGRU
from rnnzoo.layers.min_lstm import MinLSTM as MinLSTM
from rnnzoo.layers.wrappers import Bidirectional as Bidirectional
from rnnzoo.layers.wrappers import BidirectionalCarry as BidirectionalCarry
from rnnzoo.layers.wrappers import Reverse as Reverse
from rnnzoo.layers.wrappers import as_rnn_cell as as_rnn_cell
from rnnzoo.layers.wrappers import mask_from_lengths as mask_from_lengths
from rnnzoo.layers.wrappers import pack as pack
from rnnzoo.layers.wrappers import put_rows as put_rows
from rnnzoo.layers.wrappers import reset_from_done as reset_from_done
from rnnzoo.layers.wrappers import (
    reset_from_segment_ids as reset_from_segment_ids,
)
from rnnzoo.layers.wrappers import take_rows as take_rows
from rnnzoo.layers.wrappers import time_major as time_major

# By the names used in configs, one per architecture.
LAYERS = dict(
    elman=Elman,
    gru=GRU,
    lru=LRU,
    lstm=LSTM,
    min_gru=MinGRU,
    min_lstm=MinLSTM,
)
