"""The checks of a layer by name, each a function from a case to problems."""

from rnnzoo.testing import interface_checks
from rnnzoo.testing import sequence_checks

# The most informative checks come first.
CHECKS = dict(
    causality=sequence_checks.check_causality,
    steps=sequence_checks.check_steps,
    chunks=sequence_checks.check_chunks,
    reset=sequence_checks.check_reset,
    mask=sequence_checks.check_mask,
    batch=sequence_checks.check_batch,
    lengths=interface_checks.check_lengths,
    grad=interface_checks.check_grad,
    shapes=interface_checks.check_shapes,
    dtypes=interface_checks.check_dtypes,
    errors=interface_checks.check_errors,
    donation=interface_checks.check_donation,
    transforms=sequence_checks.check_transforms,
    segments=sequence_checks.check_segments,
    eager=interface_checks.check_eager,
    export=interface_checks.check_export,
    long=interface_checks.check_long,
)

# Names of checks in earlier versions, which `check_layer` still accepts.
FORMER_NAMES = dict(stretches='segments')

NUMERIC = ('steps', 'chunks', 'reset', 'mask')  # Run for every dtype.

CAUSAL_ONLY = ('steps', 'chunks', 'causality', 'export')
