"""Speech Commands: a TFDS builder that needs no TensorFlow, and its reader.

It reads version 0.02 of the data, `speech_commands_v0.02.tar.gz`, packed or
unpacked: a folder of WAV files for each of 35 words, and two lists of the files
for validation and for testing. A clip has 16,000 samples, one second: a shorter
one is filled up with zeros at its end, a longer one is cut.

All clips together are 3.4 GB. There is a split of TFDS for each word of each
part, such as `train_yes`, and a record for each clip. So preparing needs the
memory of one word only, and clips are read by their numbers.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import math
import pathlib
import tempfile
from typing import Any

import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import originals
from rnnzoo.data.builders import records
from rnnzoo.data.builders import wav
import tensorflow_datasets as tfds

NAME = 'speech_commands'
VERSION = '1.0.0'
ARCHIVE = 'speech_commands_v0.02.tar.gz'
ADDRESS = f'http://download.tensorflow.org/data/{ARCHIVE}'
# The SHA-256 that TFDS has registered for the archive.
DIGEST = 'af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58'
CLIPS = 105_829  # In the archive.
# The ten words of SC10 come first.
WORDS = (
    'yes', 'no', 'up', 'down', 'left', 'right', 'on', 'off', 'stop', 'go',
    'backward', 'bed', 'bird', 'cat', 'dog', 'eight', 'five', 'follow',
    'forward', 'four', 'happy', 'house', 'learn', 'marvin', 'nine', 'one',
    'seven', 'sheila', 'six', 'three', 'tree', 'two', 'visual', 'wow', 'zero',
)
LISTS = dict(validation='validation_list.txt', test='testing_list.txt')
PARTS = ('train', *LISTS)
RATE = 16_000  # Samples a second, and samples of a clip.


class SpeechCommands(
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """A record for each clip, `[16000]` int16, in a split for each word.

  The metadata has, for each split, the sum and the sum of squares of all
  samples, and their SHA-256.
  """

  name = NAME
  VERSION = tfds.core.Version(VERSION)
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
      f'Put {ARCHIVE} from {ADDRESS} into manual_dir.'
  )
  # Whether the files must be the original ones.
  check_originals = True

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description='Words, each said within a second.',
        features=tfds.features.FeaturesDict({
            'audio': tfds.features.Tensor(
                shape=(RATE,), dtype=np.int16, encoding='bytes'
            ),
        }),
        metadata=tfds.core.MetadataDict(),
        homepage='https://arxiv.org/abs/1804.03209',
        disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    directory = pathlib.Path(dl_manager.manual_dir)
    found = file_names(directory, self.check_originals)
    return {
        split: self._generate_examples(split, directory, names)
        for split, names in found.items()
    }

  def _generate_examples(self, split, directory, names):
    total, squares, digest = 0, 0, hashlib.sha256()
    for number, name in enumerate(names):
      path = directory / name
      audio = one_second(wav.read(path.read_bytes(), str(path), RATE))
      digest.update(audio.astype('<i2').tobytes())
      total += int(audio.sum(dtype=np.int64))
      squares += int((audio.astype(np.int64) ** 2).sum())
      yield number, {'audio': audio}
    metadata: Any = self.info.metadata  # From `_info`, so it is not None.
    metadata[split] = dict(
        sum=total, squares=squares, sha256=digest.hexdigest()
    )


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    builder_class: type[SpeechCommands] = SpeechCommands,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  The archive is unpacked into a temporary directory under `data_dir`, which
  needs as much space again.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: The directory with `speech_commands_v0.02.tar.gz`, or with what
      is in it.
    builder_class: The builder, which knows whether to check the files.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the files are not there or are not the right ones.
  """
  if manual_dir is None:
    raise errors.UserValueError(
        f'{NAME} needs --manual_dir=DIR, a directory with the file {ARCHIVE}, '
        f'packed or unpacked. It is at {ADDRESS}'
    )
  place = find(manual_dir)
  directory = data_dir / NAME / VERSION
  if (directory / 'dataset_info.json').exists() or not place.is_file():
    return records.write(builder_class, data_dir, place)
  if builder_class.check_originals:
    originals.check_digest(place, DIGEST)
  try:
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data_dir) as temporary:
      unpack(place, pathlib.Path(temporary))
      return records.write(
          builder_class, data_dir, pathlib.Path(temporary)
      )
  except OSError as error:
    if isinstance(error, errors.UserError):
      raise
    raise errors.UserError(
        f'{place} could not be unpacked in {data_dir}: '
        f'{records.first_line(error)}.'
    ) from error


def find(directory: pathlib.Path) -> pathlib.Path:
  """Returns the folder with the words and lists, or else the archive.

  Raises:
    UserFileNotFoundError: If there is neither.
  """
  for place in (directory, directory / ARCHIVE.removesuffix('.tar.gz')):
    if (place / LISTS['test']).is_file():
      return place
  if (directory / ARCHIVE).is_file():
    return directory / ARCHIVE
  raise errors.UserFileNotFoundError(
      f'There is no file {ARCHIVE}, and no {LISTS["test"]} of its content, in '
      f'{directory} (--manual_dir). It is at {ADDRESS}'
  )


def unpack(archive: pathlib.Path, directory: pathlib.Path):
  """Writes the lists and the WAV files of the 35 words, and nothing else."""

  def wanted(name):
    word, _, file = name.rpartition('/')
    return name in LISTS.values() or word in WORDS and file.endswith('.wav')

  for word in WORDS:
    (directory / word).mkdir()
  for name, content in originals.members(archive, wanted):
    (directory / name).write_bytes(content)


def file_names(
    directory: pathlib.Path, check: bool = True
) -> dict[str, list[str]]:
  """Returns the files of each split, `'train_yes'` and so on, in order.

  A file is for validation or testing if it is in that list, and else for
  training.

  Args:
    directory: With the folders of the words, and the lists.
    check: Whether there must be as many files as in the archive.

  Raises:
    UserError: If files are missing, or a split has none.
  """
  found = {
      word: sorted(
          f'{word}/{path.name}' for path in (directory / word).glob('*.wav')
      )
      for word in WORDS
  }
  count = sum(map(len, found.values()))
  if check and count != CLIPS:
    raise errors.UserValueError(
        f'{directory} must hold {CLIPS:,} WAV files in folders of 35 words, '
        f'got {count:,}. Unpack {ARCHIVE} again.'
    )
  part_of = {}
  for part, file in LISTS.items():
    if not (directory / file).is_file():
      raise errors.UserFileNotFoundError(
          f'There is no file {file} in {directory}. It is in {ARCHIVE} from '
          f'{ADDRESS}'
      )
    try:
      names = (directory / file).read_text(encoding='utf-8').split()
    except UnicodeDecodeError as error:
      raise errors.UserValueError(
          f'{directory / file} is not UTF-8: {error}. Unpack {ARCHIVE} again.'
      ) from error
    missing = set(names) - {name for u in found.values() for name in u}
    if missing:
      raise errors.UserFileNotFoundError(
          f'There is no file {min(missing)} in {directory}, which {file} '
          f'names. Unpack {ARCHIVE} again.'
      )
    part_of |= dict.fromkeys(names, part)
  splits = {
      f'{part}_{word}': [
          name for name in names if part_of.get(name, 'train') == part
      ]
      for part in PARTS for word, names in found.items()
  }
  for split, names in splits.items():
    if not names:
      part, _, word = split.partition('_')
      raise errors.UserValueError(
          f'{directory} has no WAV file of the word {word} for {part}. Unpack '
          f'{ARCHIVE} again.'
      )
  return splits


def one_second(samples: np.ndarray) -> np.ndarray:
  """Returns 16,000 samples: cut, or filled up with zeros.

  >>> one_second(np.ones(15_999, np.int16))[-3:].tolist()
  [1, 1, 0]
  """
  samples = samples[:RATE]
  return np.pad(samples, (0, RATE - len(samples)))


class Clips:
  """The clips of some words as an array `[N, 16000]` int16, read by index."""

  def __init__(self, words: Sequence[records.Opened]):
    self._words = words
    self._ends = np.cumsum([len(word) for word in words])

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, rows: np.ndarray) -> np.ndarray:
    """Returns the clips `[n, 16000]` at `rows`, `[n]` integers.

    Raises:
      UserError: If a file cannot be read.
    """
    words = np.searchsorted(self._ends, rows, side='right')
    starts = np.concatenate([[0], self._ends])[words]
    return np.stack([
        self._words[word][int(row)]['audio']
        for word, row in zip(words, rows - starts, strict=True)
    ])


@dataclasses.dataclass(frozen=True)
class Content:
  """The clips of some words.

  Attributes:
    clips: By part: train, validation and test.
    labels: The number of the word of each clip, `[N]` int32, by part.
    mean: The mean of all samples of the train part.
    deviation: Their standard deviation.
    sha256: A digest of all clips.
  """

  clips: dict[str, Clips]
  labels: dict[str, np.ndarray]
  mean: float
  deviation: float
  sha256: str


def read(data_dir: pathlib.Path, words: Sequence[str] = WORDS) -> Content:
  """Opens the clips of some words. They are read when they are asked for.

  Args:
    data_dir: Where data sets lie: the parent of `speech_commands`.
    words: Some of `WORDS`; their order is that of the labels.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  names = {part: [f'{part}_{word}' for word in words] for part in PARTS}
  found, metadata = records.open_splits(
      data_dir, NAME, VERSION, [u for part in PARTS for u in names[part]],
      'To prepare it: {command} --manual_dir=DIR, where DIR has the file '
      f'{ARCHIVE} from {ADDRESS}.',
  )
  return Content(
      clips={
          part: Clips([found[name] for name in names[part]]) for part in PARTS
      },
      labels={
          part: np.repeat(
              np.arange(len(words), dtype=np.int32),
              [len(found[name]) for name in names[part]],
          )
          for part in PARTS
      },
      **_statistics(
          [metadata[name] for name in names['train']],
          sum(len(found[name]) for name in names['train']) * RATE,
      ),
      sha256=hashlib.sha256(json.dumps(
          {name: metadata[name]['sha256'] for name in found}
      ).encode()).hexdigest(),
  )


def _statistics(splits: list[dict[str, Any]], count: int) -> dict[str, float]:
  mean = sum(split['sum'] for split in splits) / count
  square = sum(split['squares'] for split in splits) / count
  return dict(mean=mean, deviation=math.sqrt(square - mean**2))


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each part holds, for people."""
  return {
      part: f'{len(clips):,} clips'
      for part, clips in read(data_dir).clips.items()
  }


class _Fixture(SpeechCommands, skip_registration=True):
  name = NAME
  check_originals = False


def prepare_fixture(data_dir: pathlib.Path):
  """Writes the files with a few clips, and prepares them, if need be."""
  if (data_dir / NAME / VERSION / 'dataset_info.json').exists():
    return
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    write_fixture_files(manual_dir)
    with records.quiet():
      prepare(data_dir, manual_dir, _Fixture)


def write_fixture_files(directory: pathlib.Path):
  """Writes folders and lists: a word is a tone of a frequency of its own.

  The ten words of SC10 have more clips than the others. Some clips are shorter
  than a second.
  """
  rng = np.random.default_rng(0)
  lists = {part: [] for part in LISTS}
  for number, word in enumerate(WORDS):
    (directory / word).mkdir()
    counts = (8, 2, 2) if number < 10 else (1, 1, 1)
    parts = [u for u, n in zip(PARTS, counts, strict=True) for _ in range(n)]
    for clip, part in enumerate(parts):
      name = f'{word}/{clip:08x}_nohash_0.wav'
      time = np.arange(rng.integers(12_000, RATE + 1)) / RATE
      phase = 2 * np.pi * (_frequency(number) * time + rng.random())
      samples = (6000 * np.sin(phase)).astype(np.int16)
      (directory / name).write_bytes(wav.to_bytes(samples, RATE))
      if part in lists:
        lists[part].append(name)
  for part, file in LISTS.items():
    (directory / file).write_text(''.join(f'{u}\n' for u in lists[part]))


def _frequency(number: int) -> float:
  """The frequency of a word in Hz, below half the lower rate."""
  return 60.0 * 1.5 ** (number % 10) * 1.03 ** (number // 10)
