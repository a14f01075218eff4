"""What `scripts/test --quick` leaves out.

These files take most of the time of the suite: they run commands, compile for
many devices, or go through every layer.
"""

LEFT_OUT = (
    'tests/aot',
    'tests/docstrings_test.py',
    'tests/examples_test.py',
    'tests/experiments',
    'tests/layers/contract_test.py',
    'tests/linen_test.py',
    'tests/models/mesh_test.py',
    'tests/models/sequence_model_test.py',
    'tests/models/split_time_test.py',
    'tests/online_test.py',
    'tests/ops/mesh_test.py',
    'tests/ops/pallas_gpu_test.py',
    'tests/ops/pallas_tpu_test.py',
    'tests/ops/segments_test.py',
    'tests/readme_test.py',
    'tests/rl/loop_test.py',
    'tests/rl/ppo_test.py',
    'tests/tasks/tasks_test.py',
    'tests/training/checkpoint_damage_test.py',
    'tests/training/loop_test.py',
    'tests/training/recovery_test.py',
)
