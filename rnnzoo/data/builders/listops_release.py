"""ListOps as the Long Range Arena published it: a TFDS builder and its reader.

The release has a file for each split: a line with the names of the columns,
then an expression, a tab and its value in each line. Every pair of an operator
and an argument is in parentheses, and operators have a bracket: `( ( ( [MAX 2 )
9 ) ] )` is `MAX 2 9 X` in the tokens of `listops_trees`.
"""

import csv
import pathlib
import tempfile

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import listops
from rnnzoo.data.builders import listops_trees
from rnnzoo.data.builders import records
import tensorflow_datasets as tfds

NAME = 'listops_release'
VERSION = '1.0.0'
ADDRESS = 'https://storage.googleapis.com/long-range-arena/lra_release.gz'
FOLDER = 'listops-1000'
FILES = {
    'train': 'basic_train.tsv',
    'validation': 'basic_val.tsv',
    'test': 'basic_test.tsv',
}
COLUMNS = ('Source', 'Target')
_WHERE = f'the folder {FOLDER} of {ADDRESS}'
_NUMBERS = {
    # An operator is `[MIN` in the files, and the end of its arguments `]`.
    **{
        name if name.isdigit() else f'[{name}': token
        for token, name in enumerate(listops_trees.TOKENS)
        if token != listops_trees.END
    },
    ']': listops_trees.END,
}


class ListOpsRelease(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Records of up to 1,000 expressions, see `listops.features`."""

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put {", ".join(FILES.values())} from {_WHERE} into manual_dir.'
  )
  # The lines that the files must have.
  sizes = listops.SIZES

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='ListOps of the Long Range Arena.',
        features=listops.features(),
        homepage='https://github.com/google-research/long-range-arena',
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    directory = pathlib.Path(dl_manager.manual_dir)
    return {
        split: self._generate_examples(directory / name, self.sizes[split])
        for split, name in FILES.items()
    }

  def _generate_examples(self, path, size):
    rows, labels = read_original(path)
    if len(rows) != size:
      raise errors.UserValueError(
          f'{path} must have {size:,} expressions, got {len(rows):,}. It is '
          f'cut short, or another file than that in {_WHERE}.'
      )
    yield from listops.to_records(rows, labels)


def read_original(path: pathlib.Path) -> tuple[list[np.ndarray], list[int]]:
  """Returns the tokens, uint8 `[T]` each, and the labels of a file.

  Raises:
    UserError: If it is missing, damaged or another file, with the line.
  """
  rows, labels = [], []
  try:
    with path.open(encoding='utf-8', newline='') as file:
      lines = csv.reader(file, delimiter='\t')
      if tuple(next(lines, ())) != COLUMNS:
        raise errors.UserValueError(
            f'{path} must start with the columns {" and ".join(COLUMNS)}, '
            f'separated by a tab; it is no file of {_WHERE}.'
        )
      for number, line in enumerate(lines, 2):
        try:
          source, target = line
          rows.append(tokens_of(source))
          labels.append(_label(target))
        except (ValueError, KeyError) as error:
          raise errors.UserValueError(
              f'Line {number} of {path} is damaged: it must be an expression '
              f'of {", ".join(_NUMBERS)} in parentheses, a tab and its value.'
          ) from error
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise errors.UserError(
        f'{path} cannot be read: {records.first_line(error)}.'
    ) from error
  return rows, labels


def tokens_of(source: str) -> np.ndarray:
  """Returns the tokens of an expression as the release writes it, uint8.

  >>> tokens_of('( ( ( [MAX 2 ) 9 ) ] )').tolist()
  [11, 2, 9, 14]

  Raises:
    ValueError: If it is empty, or an operator lacks its end.
    KeyError: If it has another word.
  """
  words = source.replace('(', ' ').replace(')', ' ').split()
  tokens = np.array([_NUMBERS[word] for word in words], np.uint8)
  ends = np.cumsum(tokens == listops_trees.END)
  opened = np.cumsum(
      (tokens >= listops_trees.DIGITS) & (tokens != listops_trees.END)
  )
  if not len(tokens) or opened[-1] != ends[-1] or (ends > opened).any():
    raise ValueError(f'incomplete expression {source!r}')
  return tokens


def _label(target):
  label = int(target)
  if not 0 <= label < listops_trees.DIGITS:
    raise ValueError(f'no digit: {label}')
  return label


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    builder_class: type[ListOpsRelease] = ListOpsRelease,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with the three files.
    builder_class: The builder, which knows how many lines the files have.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or are not the right ones.
  """
  names = ', '.join(FILES.values())
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, a directory with the files {names}. '
        f'They are in {_WHERE}'
    )
  for name in FILES.values():
    if not (manual_dir / name).is_file():
      raise errors.UserFileNotFoundError(
          f'There is no file {name} in {manual_dir} (--manual_dir). {NAME} is '
          f'made of {names} in {_WHERE}'
      )
  return records.write(builder_class, data_dir, manual_dir)


class _Fixture(ListOpsRelease, skip_registration=True):
  name = NAME
  sizes = listops.FIXTURE_SIZES


def prepare_fixture(data_dir: pathlib.Path):
  """Writes the three files with small expressions, and prepares them."""
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_files(manual_dir)
    with records.quiet():
      prepare(data_dir, manual_dir, _Fixture)


def write_fixture_files(directory: pathlib.Path):
  """Writes the three files with a few expressions of 5 to 24 tokens."""
  found = listops_trees.sample(
      np.random.default_rng(1), 8000, listops.FIXTURE_RULES
  )
  expressions = zip(
      np.split(found.tokens, np.cumsum(found.lengths)[:-1]),
      found.labels.tolist(),
  )
  for split, name in FILES.items():
    with (directory / name).open('w', encoding='utf-8', newline='') as file:
      lines = csv.writer(file, delimiter='\t')
      lines.writerow(COLUMNS)
      for _ in range(listops.FIXTURE_SIZES[split]):
        tokens, label = next(expressions)
        lines.writerow([_source(tokens.tolist()), label])


def _source(tokens: list[int]) -> str:
  """Returns an expression as the release writes it."""
  words = {token: word for word, token in _NUMBERS.items()}
  stack = [[]]
  for token in tokens:
    if listops_trees.DIGITS <= token < listops_trees.END:
      stack.append([])
    stack[-1].append(words[token])
    if token == listops_trees.END:
      text, *others = stack.pop()
      for other in others:
        text = f'( {text} {other} )'
      stack[-1].append(text)
  ((text,),) = stack
  return text


def read(data_dir: pathlib.Path) -> dict[str, listops_trees.Expressions]:
  """Returns the expressions of each split.

  Args:
    data_dir: Where data sets lie: the parent of `listops_release`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, FILES,
      'To prepare it: {command} --manual_dir=DIR, where DIR has the files '
      f'{", ".join(FILES.values())} of {_WHERE}.',
      convert=listops.joined,
  )


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return listops.summaries(read(data_dir))
