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
    'tests/models/sequence_test.py',
    'tests/online_test.py',
    'tests/ops/sharded_test.py',
    'tests/ops/stretches_test.py',
    'tests/readme_test.py',
    'tests/security_test.py',
    'tests/training/loop_test.py',
)
