"""minGRU and minLSTM (Feng et al., 2024), https://arxiv.org/abs/2410.01201."""

from rnnzoo.models.config import ModelConfig

PRESETS = dict(
    min_gru_shakespeare=ModelConfig(
        layer='min_gru', num_layers=3, features=384,
        layer_options=dict(expansion_factor=2), dropout=0.2,
    ),
    min_lstm_shakespeare=ModelConfig(
        layer='min_lstm', num_layers=3, features=384,
        layer_options=dict(expansion_factor=2), dropout=0.2,
    ),
    min_gru_selective_copying=ModelConfig(
        layer='min_gru', num_layers=3, features=64, mlp='none', vocab_size=16,
        layer_options=dict(expansion_factor=6, learn_initial_state=True),
    ),
    min_lstm_selective_copying=ModelConfig(
        layer='min_lstm', num_layers=3, features=64, mlp='none', vocab_size=16,
        layer_options=dict(
            expansion_factor=6, normalize=False, learn_initial_state=True
        ),
    ),
)
