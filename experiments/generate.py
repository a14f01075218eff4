r"""Writes text with the model of a run.

  python -m experiments.generate --workdir=runs/quickstart --prompt='The ' \
      --length=400 --temperature=0.8 --seed=0

`--pretrained=DIR` writes with a model in the format of Hugging Face instead: a
folder with `config.json`, `*.safetensors` and `tokenizer.json`.

The text of a single prompt is printed character by character. Several prompts
(`--prompt` again) are continued in one batch and printed one after another.
"""

import sys

from absl import app
from absl import flags
from experiments.cli import config_flag
from experiments.cli import drivers
from experiments.cli import sampling
from rnnzoo import fields
from rnnzoo import generation
from rnnzoo import restoring
from rnnzoo.training.processes import host

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_PRETRAINED = drivers.define_path(
    'pretrained', None,
    'A folder of pretrained weights, in place of --workdir.',
)
_DTYPE = flags.DEFINE_enum(
    'dtype', None, ['float32', 'bfloat16'],
    'The dtype of a pretrained model; by default that of its file.',
)
_PROMPT = flags.DEFINE_multi_string(
    'prompt', [],
    'The text to continue. Without a prompt, the text starts on a new line.',
)
_LENGTH = flags.DEFINE_integer(
    'length', 400,
    'The number of tokens to write.', lower_bound=1, upper_bound=10**7,
)
_TEMPERATURE = flags.DEFINE_float(
    'temperature', 0.8,
    'Higher values make the text more random; 0 always takes the most '
    'probable token.',
)
_TOP_K = flags.DEFINE_integer(
    'top_k', 0,
    'Choose only among the k most probable tokens; 0 means all.',
    lower_bound=0, upper_bound=fields.MAX_INT,
)
_TOP_P = flags.DEFINE_float(
    'top_p', 1.0,
    'Choose only among the most probable tokens that together have this '
    'probability.',
)
_SEED = flags.DEFINE_integer(
    'seed', 0,
    'The seed of the random choices: the same seed gives the same text.',
    lower_bound=0, upper_bound=2**32 - 1,
)
_STREAM = flags.DEFINE_bool(
    'stream', True,
    'Print the characters of a single prompt as soon as they are known.',
)
_LAYERS = drivers.define_path(
    'layers', None,
    'The config file of the run. It is needed only if the file exports LAYERS '
    'or TASKS.',
)


def main(argv):
  drivers.check_usage(argv)
  if bool(_WORKDIR.value) == bool(_PRETRAINED.value):
    raise app.UsageError('One of --workdir and --pretrained is required.')
  # Text may hold what the terminal cannot show.
  sys.stdout.reconfigure(errors='backslashreplace')
  host.enable_compilation_cache()
  if _PRETRAINED.value:
    run, stop = sampling.open_pretrained(_PRETRAINED.value, _DTYPE.value)
  else:
    exports = config_flag.exports_of(_LAYERS.value)
    run, stop = restoring.restore_run(
        _WORKDIR.value, layers=exports.layers, tasks=exports.tasks
    ), ()
  sampling.check_text(run)
  options = dict(
      stop=stop,
      seed=_SEED.value,
      length=_LENGTH.value,
      sampling=generation.Sampling(
          _TEMPERATURE.value, _TOP_K.value, _TOP_P.value
      ),
  )
  prompts = _PROMPT.value or [sampling.start_of_text(run)]
  if len(prompts) == 1 and _STREAM.value:
    pieces = sampling.pieces(run, prompts[0], **options)
    for i, piece in enumerate(pieces):
      if not i and _PROMPT.value:
        print(prompts[0], end='')
      print(piece, end='', flush=True)
    print()
    return
  for i, text in enumerate(sampling.continuations(run, prompts, **options)):
    if i:
      print('-' * 20)
    print((prompts[i] if _PROMPT.value else '') + text)


if __name__ == '__main__':
  drivers.run(main)
