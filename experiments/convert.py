r"""Writes the model of a run as a folder that `transformers` opens.

  python -m experiments.convert --workdir=runs/finetune --output=mine

The folder has `config.json`, `model.safetensors` and the tokenizer. It is read
again by `--pretrained=mine`, by `--config.init_from=mine` and by
`rnnzoo.convert.load_pretrained`. The model is the best checkpoint of the run;
it must be of a kind that `docs/pretrained.md` lists.
"""

import pathlib

from experiments.cli import drivers
from rnnzoo import convert
from rnnzoo import restoring
from rnnzoo.training import files
from rnnzoo.training import state as state_lib

_WORKDIR = drivers.define_path('workdir', None, 'The directory of the run.')
_OUTPUT = drivers.define_path(
    'output', None, 'The folder to write, which must not hold weights.'
)
_LIKE = drivers.define_path(
    'like', None,
    'A folder of which the files of the tokenizer are copied; by default that '
    'which the run started from (init_from).',
)


def main(argv):
  drivers.check_usage(argv, workdir=_WORKDIR.value, output=_OUTPUT.value)
  run = restoring.restore_run(_WORKDIR.value)
  like = _LIKE.value
  start = run.config.get('init_from')
  if not like and start and convert.is_pretrained(start):
    like = start
  convert.save_pretrained(run.model, _OUTPUT.value, like=like)
  tokenizer = pathlib.Path(_OUTPUT.value, convert.loading.TOKENIZER)
  if run.vocabulary is not None and run.vocabulary.level == 'bpe':
    # What the run was trained with, whatever has become of the other folder.
    files.write_text(tokenizer, run.vocabulary.symbols)
  count = state_lib.count_parameters(run.task.functional.params)
  name = 'with a tokenizer' if tokenizer.exists() else 'without a tokenizer'
  print(
      f'{_OUTPUT.value}: step {run.step} of {_WORKDIR.value}, {count:,} '
      f'parameters, {name}'
  )


if __name__ == '__main__':
  drivers.run(main)
