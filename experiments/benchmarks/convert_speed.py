r"""Times a model of `rnnzoo.convert` beside the same one of transformers.

  pip install 'torch==2.13.0' 'transformers==5.23.0'  # Beside rnnzoo.
  python -m experiments.benchmarks.convert_speed

A model of the size of `mamba-130m` (or `--preset`), with random weights, is
written as a folder and read by both, in float32; `--pretrained=DIR` is a folder
of yours. Both get the same tokens on the same CPU, in one process, and calls of
both alternate:

* prefill: one call for the whole prompt, with the logits of its last token;
* decode: greedy tokens one by one, each from a call with the carry (the cache)
  of the call before.

That both are the same model is checked: `logits_difference` is relative to the
largest logit, and the greedy tokens must be equal. On CPUs transformers runs
the scan of Mamba as a loop over tokens in PyTorch; its kernels are for GPUs.
"""

import pathlib
import tempfile

from absl import flags
from experiments.benchmarks import timing
from experiments.cli import drivers
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import convert
from rnnzoo import errors
from rnnzoo import generation
from rnnzoo import models
from rnnzoo.training import state as state_lib
from rnnzoo.training.processes import host

_PRETRAINED = drivers.define_path(
    'pretrained', None,
    'A folder to read instead of a new model, which --preset, --layers, '
    '--features and --vocab describe.',
)
_PRESET = flags.DEFINE_enum(
    'preset', 'mamba_130m', ['mamba_130m', 'mamba2_130m'],
    'Whose layers the new model has.',
)
_PROMPT = flags.DEFINE_integer(
    'prompt', 512, 'The number of tokens of the prompt.', lower_bound=1
)
_LENGTH = flags.DEFINE_integer(
    'length', 32, 'The number of tokens to write.', lower_bound=1
)
_LAYERS = flags.DEFINE_integer(
    'layers', 24, 'The number of blocks.', lower_bound=1
)
_FEATURES = flags.DEFINE_integer(
    'features', 768, 'The number of features.', lower_bound=1
)
_VOCAB = flags.DEFINE_integer(
    'vocab', 50_280, 'The number of tokens that there are.', lower_bound=2
)
_REPEATS = flags.DEFINE_integer(
    'repeats', 3, 'The number of rounds.', lower_bound=1
)
_OUT = drivers.define_path(
    'out', 'experiments/results/convert_speed_cpu.json',
    'The JSON file of the results.',
)

_COLUMNS = {
    'phase': '{phase}',
    'package': '{package}',
    'tokens/s': '{tokens_per_second:,.1f}',
    'per CPU second': '{tokens_per_cpu_second:,.1f}',
    'times transformers': '{times:.2f}',
}
_GREEDY = generation.Sampling(temperature=0)


def libraries():
  """Returns torch and transformers.

  Raises:
    UserError: If one is missing.
  """
  try:
    import torch
    import transformers
  except ImportError as error:
    raise errors.UserError(
        f'{error}. This benchmark compares with transformers: pip install '
        "'torch==2.13.0' 'transformers==5.23.0'."
    ) from error
  return torch, transformers


def write_model(folder):
  """Writes a new model."""
  config = models.PRESETS[_PRESET.value].replace(
      num_layers=_LAYERS.value, features=_FEATURES.value,
      vocab_size=_VOCAB.value, scan_layers=True,
  )
  convert.save_pretrained(
      models.LanguageModel(config, rngs=nnx.Rngs(0)), folder
  )


def our_calls(model, prompt):
  """Returns functions that give the last logits, and the greedy tokens."""

  @jax.jit
  def prefill(model, tokens):
    carry, features = model.features(tokens)
    return carry, model.logits(features[:, -1])

  writer = generation.Writer(model, sampling=_GREEDY)
  writer.read(prompt)
  writer.next()

  def decode():
    return np.stack([writer.next() for _ in range(_LENGTH.value)], 1)

  tokens = jnp.asarray(prompt)
  return lambda: prefill(model, tokens)[1], decode


def their_calls(folder, prompt):
  """The same of transformers."""
  torch, transformers = libraries()
  model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
  ).eval()
  tokens = torch.tensor(prompt.astype(np.int64))

  @torch.inference_mode()
  def call(tokens, cache=None):
    return model(
        tokens, cache_params=cache, use_cache=True, logits_to_keep=1
    )

  state = []

  def advance(found):
    last = found.logits[:, -1].argmax(-1, keepdim=True)
    state[:] = [found.cache_params, last]
    return last.numpy()[:, 0]

  advance(call(tokens))

  def decode():
    return np.stack([
        advance(call(state[1], state[0])) for _ in range(_LENGTH.value)
    ], 1)

  return lambda: call(tokens).logits[:, -1].numpy(), decode


def main(argv):
  drivers.check_usage(argv)
  torch, transformers = libraries()
  host.pin_malloc()
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as directory:
    folder = _PRETRAINED.value
    if not folder:
      folder = pathlib.Path(directory, 'model')
      write_model(folder)
    model = convert.load_pretrained(folder)
    prompt = rng.integers(0, model.config.vocab_size, (1, _PROMPT.value))
    prompt = prompt.astype(np.int32)
    calls = dict(
        rnnzoo=our_calls(model, prompt),
        transformers=their_calls(folder, prompt),
    )
  parameters = state_lib.count_parameters(nnx.state(model, nnx.Param))
  logits = [np.asarray(prefill()) for prefill, _ in calls.values()]
  written = [decode() for _, decode in calls.values()]
  if not np.array_equal(*written):
    raise errors.UserError('The two models write different tokens.')
  rows = []
  for number, (phase, tokens) in enumerate(
      dict(prefill=_PROMPT.value, decode=_LENGTH.value).items()
  ):
    medians = timing.interleaved_medians(
        {name: both[number] for name, both in calls.items()}, _REPEATS.value
    )
    theirs = medians['transformers'].seconds
    for name, duration in medians.items():
      rows.append(dict(
          phase=phase, package=name, tokens=tokens,
          tokens_per_second=tokens / duration.seconds,
          tokens_per_cpu_second=tokens / duration.cpu_seconds,
          times=theirs / duration.seconds,
      ))
  timing.print_table(rows, _COLUMNS)
  difference = np.abs(logits[0] - logits[1]).max() / np.abs(logits[1]).max()
  timing.save(
      dict(
          timing.environment(), torch=torch.__version__,
          transformers=transformers.__version__,
          torch_threads=torch.get_num_threads(), parameters=parameters,
          logits_difference=float(difference),
          equal_tokens=int(written[0].size), rows=rows,
      ),
      _OUT.value,
  )


if __name__ == '__main__':
  drivers.run(main)
