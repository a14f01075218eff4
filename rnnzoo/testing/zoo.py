"""Small instances of every layer, for tests."""

import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo.layers import min_gru

# A layer joins the zoo by joining this list: `make(rngs)` gives a small one.
LAYERS = dict(
    aaren=lambda rngs: layers.Aaren(6, num_heads=2, rngs=rngs),
    cg_lru=lambda rngs: layers.CGLRU(8, num_heads=2, rngs=rngs),
    conv_lstm=lambda rngs: layers.ConvLSTM((3, 4, 2), 3, rngs=rngs),
    conv_s5=lambda rngs: layers.ConvS5((3, 4, 2), 4, rngs=rngs),
    elman=lambda rngs: layers.Elman(6, 5, rngs=rngs),
    griffin=lambda rngs: layers.GriffinBlock(6, 8, num_heads=2, rngs=rngs),
    gru=lambda rngs: layers.GRU(6, 5, rngs=rngs),
    lmu=lambda rngs: layers.LMU(6, 5, order=4, theta=10, rngs=rngs),
    hgrn=lambda rngs: layers.HGRN(6, lower_bound=0.3, rngs=rngs),
    lru=lambda rngs: layers.LRU(6, 5, rngs=rngs),
    lstm=lambda rngs: layers.LSTM(6, 5, rngs=rngs),
    mamba=lambda rngs: layers.Mamba(4, state_features=3, rngs=rngs),
    min_gru=lambda rngs: layers.MinGRU(6, rngs=rngs),
    min_lstm=lambda rngs: layers.MinLSTM(6, rngs=rngs),
    parallel_lmu=lambda rngs: layers.ParallelLMU(
        6, 5, order=4, theta=10, rngs=rngs
    ),
    rg_lru=lambda rngs: layers.RGLRU(6, num_heads=2, rngs=rngs),
    s4=lambda rngs: layers.S4(6, 4, rngs=rngs),
    s4d=lambda rngs: layers.S4D(6, 4, rngs=rngs),
    s5=lambda rngs: layers.S5(6, 8, blocks=2, rngs=rngs),
    sgru=lambda rngs: layers.SGRU(6, 5, rngs=rngs),
    rwkv4=lambda rngs: layers.RWKV4(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    rwkv4_channel_mix=lambda rngs: layers.RWKV4ChannelMix(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    slstm=lambda rngs: layers.SLSTM(
        6, 4, num_heads=2, recurrent_init='uniform', rngs=rngs
    ),
    slstm_block=lambda rngs: layers.SLSTMBlock(
        6, num_heads=2, recurrent_init='uniform', rngs=rngs
    ),
    tfc_sgru=lambda rngs: layers.TFCSGRU(6, 5, rngs=rngs),
    tt_gru=lambda rngs: layers.TTGRU(6, 4, rngs=rngs),
    tt_lstm=lambda rngs: layers.TTLSTM(6, 4, num_cores=3, rngs=rngs),
)

# The same with their options, and what wraps a layer.
VARIANTS = dict(
    aaren_without_projection=lambda rngs: layers.Aaren(
        6, num_heads=2, head_features=4, use_projection=False, use_bias=True,
        rngs=rngs,
    ),
    bidirectional=lambda rngs: layers.Bidirectional(
        layers.MinGRU(6, learn_initial_state=True, rngs=rngs),
        layers.LSTM(6, 5, rngs=rngs),
    ),
    conv_lstm_plain=lambda rngs: layers.ConvLSTM(
        (3, 4, 2), kernel_size=1, use_peepholes=False, rngs=rngs
    ),
    conv_s5_blocks=lambda rngs: layers.ConvS5(
        (5, 3, 2), 4, blocks=2, b_kernel_size=1, c_kernel_size=5,
        d_kernel_size=0, clip_eigs=False, rngs=rngs,
    ),
    elman_bfloat16=lambda rngs: layers.Elman(
        6, 5, dtype=jnp.bfloat16, rngs=rngs
    ),
    griffin_complex=lambda rngs: layers.GriffinBlock(
        6, 8, recurrence='cg_lru', num_heads=2, conv_kernel=3, rngs=rngs
    ),
    gru_reset_before=lambda rngs: layers.GRU(
        6, 5, reset_after=False, rngs=rngs
    ),
    lmu_trainable=lambda rngs: layers.LMU(
        6, 5, order=2, theta=10, discretization='euler', trainable=True,
        rngs=rngs,
    ),
    hgrn_complex=lambda rngs: layers.HGRN(
        6, expansion_factor=1.5, complex_state=True, norm='layer',
        use_bias=True, rngs=rngs,
    ),
    lru_without_gamma=lambda rngs: layers.LRU(
        6, 5, use_gamma=False, r_min=0.5, max_phase=0.3, rngs=rngs
    ),
    lru_bfloat16_parameters=lambda rngs: layers.LRU(
        6, 5, param_dtype=jnp.bfloat16, rngs=rngs
    ),
    mamba_bfloat16=lambda rngs: layers.Mamba(
        4,
        state_features=3,
        conv_kernel=2,
        use_conv_bias=False,
        use_bias=True,
        dtype=jnp.bfloat16,
        rngs=rngs,
    ),
    min_gru_expanded=lambda rngs: layers.MinGRU(
        6,
        expansion_factor=1.5,
        learn_initial_state=True,
        use_bias=False,
        rngs=rngs,
    ),
    min_gru_plain=lambda rngs: layers.MinGRU(
        6, activation_fn=min_gru.identity, use_projection=True, rngs=rngs
    ),
    min_lstm_unnormalized=lambda rngs: layers.MinLSTM(
        6,
        normalize=False,
        use_bias=False,
        learn_initial_state=True,
        rngs=rngs,
    ),
    min_lstm_bfloat16=lambda rngs: layers.MinLSTM(
        6, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs
    ),
    parallel_lmu_channels=lambda rngs: layers.ParallelLMU(
        6, 5, memory_features=3, order=2, theta=10, discretization='euler',
        memory_activation_fn=jnp.tanh, trainable=True, rngs=rngs,
    ),
    reverse=lambda rngs: layers.Reverse(layers.GRU(6, 5, rngs=rngs)),
    s4d_legs=lambda rngs: layers.S4D(
        6, 4, init='legs', output_map='none', rngs=rngs
    ),
    s4d_real=lambda rngs: layers.S4D(
        6, 4, init='real', discretization='bilinear', rngs=rngs
    ),
    tt_lstm_separate=lambda rngs: layers.TTLSTM(
        6, 4, form='separate', rngs=rngs
    ),
    s5_all_states=lambda rngs: layers.S5(
        6, 3, conj_sym=False, discretization='bilinear', clip_eigs=True,
        rngs=rngs,
    ),
    s5_bidirectional=lambda rngs: layers.S5(
        6, 4, bidirectional=True, c_init='complex_normal', rngs=rngs
    ),
    slstm_exponential=lambda rngs: layers.SLSTM(
        6,
        4,
        num_heads=1,
        forget_gate='exponential',
        recurrent_init='uniform',
        param_dtype=jnp.bfloat16,
        rngs=rngs,
    ),
)
