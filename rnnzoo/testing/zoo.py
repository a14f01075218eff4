"""Small instances of every layer, for tests."""

import jax.numpy as jnp
from rnnzoo import layers
from rnnzoo.layers import min_gru

# The test case of each layer: `make(rngs)` makes a small one.
LAYERS = dict(
    aaren=lambda rngs: layers.Aaren(6, num_heads=2, rngs=rngs),
    attention=lambda rngs: layers.Attention(
        8, num_heads=4, num_kv_heads=2, window=5, chunk_size=2, rngs=rngs
    ),
    cg_lru=lambda rngs: layers.CGLRU(8, num_heads=2, rngs=rngs),
    comba=lambda rngs: layers.Comba(4, num_heads=1, chunk_size=4, rngs=rngs),
    conv_lstm=lambda rngs: layers.ConvLSTM((3, 4, 2), 3, rngs=rngs),
    conv_s5=lambda rngs: layers.ConvS5((3, 4, 2), 4, rngs=rngs),
    d_linoss=lambda rngs: layers.DLinOSS(6, 4, rngs=rngs),
    delta_net=lambda rngs: layers.DeltaNet(
        6, num_heads=2, chunk_size=4, rngs=rngs
    ),
    elman=lambda rngs: layers.Elman(6, 5, rngs=rngs),
    gated_attention=lambda rngs: layers.GatedAttention(
        8, num_heads=4, num_kv_heads=2, head_features=8, window=5,
        chunk_size=2, rngs=rngs,
    ),
    # Three heads of values share one of keys.
    gated_delta_net=lambda rngs: layers.GatedDeltaNet(
        4, num_heads=1, num_value_heads=3, chunk_size=4, rngs=rngs
    ),
    gated_delta_net2=lambda rngs: layers.GatedDeltaNet2(
        4, num_heads=2, chunk_size=4, rngs=rngs
    ),
    gated_delta_product=lambda rngs: layers.GatedDeltaProduct(
        4, num_heads=1, chunk_size=4, rngs=rngs
    ),
    gla=lambda rngs: layers.GLA(
        8, num_heads=2, decay_rank=3, chunk_size=4, rngs=rngs
    ),
    griffin=lambda rngs: layers.GriffinBlock(6, 8, num_heads=2, rngs=rngs),
    gru=lambda rngs: layers.GRU(6, 5, rngs=rngs),
    kda=lambda rngs: layers.KDA(
        4, num_heads=1, num_value_heads=2, chunk_size=4, rngs=rngs
    ),
    latent_attention=lambda rngs: layers.LatentAttention(
        8, num_heads=2, latent_features=3, key_features=4, window=5,
        chunk_size=2, rngs=rngs,
    ),
    lightning_attention=lambda rngs: layers.LightningAttention(
        6, num_heads=2, block_index=1, num_blocks=3, chunk_size=4, rngs=rngs
    ),
    linear_attention=lambda rngs: layers.LinearAttention(
        6, num_heads=2, value_features=2, chunk_size=4, rngs=rngs
    ),
    linoss=lambda rngs: layers.LinOSS(6, 4, rngs=rngs),
    lmu=lambda rngs: layers.LMU(6, 5, order=4, theta=10, rngs=rngs),
    hgrn=lambda rngs: layers.HGRN(6, lower_bound=0.3, rngs=rngs),
    hgrn2=lambda rngs: layers.HGRN2(
        6, num_heads=2, value_features=2, lower_bound=0.3, chunk_size=4,
        rngs=rngs,
    ),
    log_linear_gated_delta_net=lambda rngs: layers.LogLinearGatedDeltaNet(
        4, num_heads=1, num_value_heads=2, num_levels=10, chunk_size=4,
        rngs=rngs,
    ),
    log_linear_mamba2=lambda rngs: layers.LogLinearMamba2(
        4, head_features=2, num_groups=2, state_features=3, num_levels=10,
        chunk_size=4, rngs=rngs,
    ),
    lru=lambda rngs: layers.LRU(6, 5, rngs=rngs),
    lstm=lambda rngs: layers.LSTM(6, 5, rngs=rngs),
    # With normal matrices and raw gates its states are chaotic: the rounding of
    # bfloat16 would grow.
    m2rnn=lambda rngs: layers.M2RNN(
        4, num_heads=2, key_features=3, value_features=2,
        forget_gate='sigmoid', state_init='identity', rngs=rngs,
    ),
    mamba=lambda rngs: layers.Mamba(4, state_features=3, rngs=rngs),
    mamba2=lambda rngs: layers.Mamba2(
        4, head_features=2, num_groups=2, state_features=3, chunk_size=4,
        rngs=rngs,
    ),
    mamba3=lambda rngs: layers.Mamba3(
        4, head_features=2, num_groups=2, state_features=4, chunk_size=4,
        rngs=rngs,
    ),
    mesa_net=lambda rngs: layers.MesaNet(
        4, num_heads=2, chunk_size=4, rngs=rngs
    ),
    min_gru=lambda rngs: layers.MinGRU(6, rngs=rngs),
    min_lstm=lambda rngs: layers.MinLSTM(6, rngs=rngs),
    mlstm=lambda rngs: layers.MLSTM(
        6, 4, num_heads=2, use_bias=False, chunk_size=4, rngs=rngs
    ),
    # With a smaller epsilon the norm leaves almost no gradient for `n`.
    mlstm_block=lambda rngs: layers.MLSTMBlock(
        6, num_heads=2, norm_epsilon=0.1, chunk_size=4, rngs=rngs
    ),
    mlstm_large=lambda rngs: layers.MLSTMLarge(
        8, num_heads=2, input_gate_bias=0.0, zero_init=False, norm='rms',
        norm_epsilon=0.1, use_bias=True, chunk_size=4, rngs=rngs,
    ),
    para_gru=lambda rngs: layers.ParaGRU(4, 6, num_heads=2, rngs=rngs),
    para_lstm=lambda rngs: layers.ParaLSTM(4, 6, num_heads=2, rngs=rngs),
    parallel_lmu=lambda rngs: layers.ParallelLMU(
        6, 5, order=4, theta=10, rngs=rngs
    ),
    ret_net=lambda rngs: layers.RetNet(
        8, num_heads=2, value_features=3, chunk_size=4, rngs=rngs
    ),
    rg_lru=lambda rngs: layers.RGLRU(6, num_heads=2, rngs=rngs),
    s4=lambda rngs: layers.S4(6, 4, rngs=rngs),
    s4d=lambda rngs: layers.S4D(6, 4, rngs=rngs),
    s5=lambda rngs: layers.S5(6, 8, blocks=2, rngs=rngs),
    sgru=lambda rngs: layers.SGRU(6, 5, rngs=rngs),
    short_conv=lambda rngs: layers.ShortConv(6, rngs=rngs),
    rwkv4=lambda rngs: layers.RWKV4(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    rwkv4_channel_mix=lambda rngs: layers.RWKV4ChannelMix(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    rwkv7=lambda rngs: layers.RWKV7(
        6, head_features=3, decay_rank=2, rate_rank=2, value_rank=2,
        gate_rank=2, layer_index=1, num_layers=3, zero_init=False,
        chunk_size=4, rngs=rngs,
    ),
    rwkv7_channel_mix=lambda rngs: layers.RWKV7ChannelMix(
        6, layer_index=1, num_layers=3, zero_init=False, rngs=rngs
    ),
    rwkv6=lambda rngs: layers.RWKV6(
        6, head_features=3, mix_rank=2, decay_rank=3, layer_index=1,
        num_layers=3, zero_init=False, chunk_size=4, rngs=rngs,
    ),
    signed_min_gru=lambda rngs: layers.SignedMinGRU(
        6, expansion_factor=1.5, rngs=rngs
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

# Layers with options, and layers around layers.
VARIANTS = dict(
    aaren_without_projection=lambda rngs: layers.Aaren(
        6, num_heads=2, head_features=4, use_projection=False, use_bias=True,
        rngs=rngs,
    ),
    attention_multi_query=lambda rngs: layers.Attention(
        6, num_heads=2, num_kv_heads=1, head_features=4, window=20,
        rotary_fraction=0.5, normalize_qk=True, use_bias=True,
        use_output_bias=True, rngs=rngs,
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
    delta_net_negative=lambda rngs: layers.DeltaNet(
        4, key_features=2, value_features=1, conv_kernel=2, activation='elu',
        allow_negative_eigenvalues=True, dtype=jnp.bfloat16, rngs=rngs,
    ),
    elman_dense=lambda rngs: layers.Elman(
        6, 5, activation='relu', hidden_init='glorot_normal', use_bias=False,
        use_projection=True, rngs=rngs,
    ),
    elman_bfloat16=lambda rngs: layers.Elman(
        6, 5, dtype=jnp.bfloat16, rngs=rngs
    ),
    gated_delta_product_plain=lambda rngs: layers.GatedDeltaProduct(
        4, num_householder=3, key_features=3, conv_kernel=2, use_decay=False,
        use_output_gate=False, dtype=jnp.bfloat16, rngs=rngs,
    ),
    griffin_complex=lambda rngs: layers.GriffinBlock(
        6, 8, recurrence='cg_lru', num_heads=2, conv_kernel=3, rngs=rngs
    ),
    gru_newton=lambda rngs: layers.GRU(6, 5, solver='newton', rngs=rngs),
    gru_reset_before=lambda rngs: layers.GRU(
        6, 5, reset_after=False, rngs=rngs
    ),
    kda_safe=lambda rngs: layers.KDA(
        4, num_heads=2, value_features=1, lower_bound=-5.0, use_gate_bias=True,
        allow_negative_eigenvalues=True, chunk_size=4, dtype=jnp.bfloat16,
        rngs=rngs,
    ),
    latent_attention_ranks=lambda rngs: layers.LatentAttention(
        6, num_heads=3, query_rank=5, shared_features=4, value_features=6,
        rotation='interleaved', window=20, dtype=jnp.bfloat16, rngs=rngs,
    ),
    linear_attention_norm=lambda rngs: layers.LinearAttention(
        6, num_heads=2, feature_map='identity', use_normalizer=False,
        norm='layer', use_bias=False, chunk_size=4, rngs=rngs,
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
    lru_polar=lambda rngs: layers.LRU(
        6, 5, parametrization='polar', use_gamma=False, rngs=rngs
    ),
    lru_cartesian=lambda rngs: layers.LRU(
        6, 5, parametrization='cartesian', rngs=rngs
    ),
    lru_bfloat16_parameters=lambda rngs: layers.LRU(
        6, 5, param_dtype=jnp.bfloat16, rngs=rngs
    ),
    m2rnn_shared=lambda rngs: layers.M2RNN(
        4, num_heads=4, num_query_heads=1, num_key_heads=2, num_forget_heads=2,
        num_weight_heads=1, key_features=2, value_features=3,
        gradient_clip=0.5, conv_kernel=3, use_bias=True, rngs=rngs,
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
    mamba2_one_group=lambda rngs: layers.Mamba2(
        4,
        state_features=3,
        head_features=4,
        conv_kernel=2,
        use_conv_bias=False,
        use_bias=True,
        chunk_size=4,
        param_dtype=jnp.bfloat16,
        rngs=rngs,
    ),
    mamba2_norm_first=lambda rngs: layers.Mamba2(
        4, state_features=3, head_features=2, num_groups=2, chunk_size=4,
        output_norm='before_gate', projection_scales=(0.5, 2.0, 0.3, 1.5, 3.0),
        rngs=rngs,
    ),
    mamba3_mimo=lambda rngs: layers.Mamba3(
        4, head_features=2, num_groups=2, state_features=4, rank=3,
        rotary_fraction=1.0, rate='softplus', use_output_norm=True,
        norm_epsilon=0.1, chunk_size=4, rngs=rngs,
    ),
    mesa_net_exact=lambda rngs: layers.MesaNet(
        4, num_heads=1, value_features=3, solver='exact', use_output_gate=True,
        chunk_size=4, dtype=jnp.bfloat16, rngs=rngs,
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
    parallel=lambda rngs: layers.Parallel(
        [
            layers.Mamba2(6, head_features=2, state_features=3, rngs=rngs),
            layers.Attention(6, num_heads=3, window=4, rngs=rngs),
            layers.MinGRU(6, learn_initial_state=True, rngs=rngs),
        ],
        input_scales=(1.0, 0.5, 2.0), output_scales=(0.3, 1.0, -1.0),
    ),
    parallel_lmu_channels=lambda rngs: layers.ParallelLMU(
        6, 5, memory_features=3, order=2, theta=10, discretization='euler',
        memory_activation_fn=jnp.tanh, trainable=True, rngs=rngs,
    ),
    ret_net_rms=lambda rngs: layers.RetNet(
        6, num_heads=2, use_rotation=False, norm='rms', use_norm_scale=True,
        chunk_size=4, rngs=rngs,
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
