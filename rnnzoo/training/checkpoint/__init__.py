"""Checkpoints: Orbax writes them in the background, our digests verify them.

The layout is a stable format which plain Orbax reads as well:

```
<workdir>/checkpoints/<step>/state/           PyTree item: the arrays
<workdir>/checkpoints/<step>/meta/metadata    JSON item: the record below
<workdir>/bad_checkpoints/<step>/             damaged ones, moved aside
```

`state` is a nested dictionary with string keys, whatever containers the saved
tree had: `opt_state[0].mu['w']` lies under `opt_state`, `'0'`, `mu`, `w`. Nodes
without arrays (such as optax's `EmptyState`) leave no trace. `meta` holds

```
format     1
step       the step, again
meta       what the caller gave: config, vocabulary, ...
metric     the value by which the best checkpoint is chosen, or null
best_mode  'max' where the highest metric is the best; absent for the lowest
leaves     {'params/w': {dtype, shape, digest}, ...}
sha256     of this record's canonical JSON without this entry
```

Orbax notices a missing or truncated file, but it restores flipped bits as if
nothing had happened. Therefore each array has a digest: the sum, modulo 2^64,
of a hash of (position in the whole array, bits) over its elements. The digest
does not depend on how devices and processes share the array.

The latest `keep` checkpoints are kept, and the best one. Orbax writes a
checkpoint under a temporary name and renames it when it is complete; it deletes
older checkpoints only after that. Killing the process at any time is harmless.
"""

from rnnzoo.training.checkpoint.checkpointer import Checkpointer as Checkpointer
from rnnzoo.training.checkpoint.checkpointer import restore_meta as restore_meta
