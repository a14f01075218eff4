"""Tiny Shakespeare: a TFDS builder that needs no TensorFlow, and its reader.

TFDS's own builder opens its download through TensorFlow. This one writes the
same records under the same name and version, so data prepared by either is read
by `read` and by `tfds.data_source('tiny_shakespeare')`.

The text is Andrej Karpathy's selection from Shakespeare's plays (char-rnn,
2015), in the public domain.
"""

import hashlib
import pathlib
import tempfile

import requests
from rnnzoo import errors
from rnnzoo.data.builders import records
from rnnzoo.data.text import corpus
import tensorflow_datasets as tfds
from tensorflow_datasets.core import units
from tensorflow_datasets.core.download import checksums
from tensorflow_datasets.core.download import download_manager

NAME = 'tiny_shakespeare'
VERSION = '1.0.0'
URL = (
    'https://raw.githubusercontent.com/karpathy/char-rnn/master/data/'
    'tinyshakespeare/input.txt'
)
FILE = 'input.txt'


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """One record a split, `{'text': bytes}`: 90 %, 5 % and 5 % of the text.

  Not registered with TFDS, which has a builder of this name.
  """

  name = NAME
  VERSION = tfds.core.Version(VERSION)

  # With this, TFDS looks for `FILE` in `manual_dir` before it downloads, and
  # checks the size and the digest of what it found.
  url_infos: dict[str, checksums.UrlInfo] = {
      URL: checksums.UrlInfo(
          size=units.Size(1_115_394),
          checksum=(
              '86c4e6aa9db7c042ec79f339dcb96d42'
              'b0075e16b8fc2e86bf0ca57e2dc565ed'
          ),
          filename=FILE,
      )
  }

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
        builder=self,
        description="Selected lines of Shakespeare's plays.",
        features=tfds.features.FeaturesDict({'text': tfds.features.Text()}),
        homepage='https://github.com/karpathy/char-rnn',
    )

  def _split_generators(self, dl_manager):
    (url,) = self.url_infos
    path = pathlib.Path(dl_manager.download(url))
    splits = corpus.split_text(path.read_bytes().decode('utf-8'))
    return {
        split: self._generate_examples(text) for split, text in splits.items()
    }

  def _generate_examples(self, text):
    yield 0, {'text': text}


def builder_of(content: bytes, url: str = f'http://localhost/{FILE}'):
  """Returns a builder that expects another text, given as UTF-8."""
  info = checksums.UrlInfo(
      size=units.Size(len(content)),
      checksum=hashlib.sha256(content).hexdigest(),
      filename=FILE,
  )

  class OtherText(TinyShakespeare, skip_registration=True):
    name = NAME
    url_infos = {url: info}

  return OtherText


def prepare_fixture(data_dir: pathlib.Path, text: str):
  """Prepares another text under `data_dir`, to try out programs."""
  content = text.encode('utf-8')
  with tempfile.TemporaryDirectory() as directory:
    manual_dir = pathlib.Path(directory)
    (manual_dir / FILE).write_bytes(content)
    with records.quiet():
      prepare(data_dir, manual_dir, builder_of(content))


def prepare(
    data_dir: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
    builder_class: type[TinyShakespeare] = TinyShakespeare,
) -> pathlib.Path:
  """Writes the data set under `data_dir`, unless it is there already.

  Args:
    data_dir: Where data sets lie; made if missing.
    manual_dir: A directory that holds `input.txt`; None downloads the file.
    builder_class: The builder, which knows the digest of the file.

  Returns:
    The directory of the data set.

  Raises:
    UserError: If the file cannot be read or downloaded, or is another file.
  """
  if manual_dir is not None and not (manual_dir / FILE).is_file():
    raise errors.UserFileNotFoundError(
        f'There is no file {FILE} in {manual_dir} (--manual_dir).'
    )
  ((url, info),) = builder_class.url_infos.items()
  source = url if manual_dir is None else manual_dir / FILE
  config = tfds.download.DownloadConfig(manual_dir=manual_dir)
  try:
    builder = builder_class(data_dir=data_dir, file_format='array_record')
    if manual_dir is None and not builder.data_path.exists():
      # Without a network TFDS would try again for minutes.
      requests.head(url, timeout=20)
    builder.download_and_prepare(download_config=config)
  except download_manager.NonMatchingChecksumError as error:
    raise errors.UserValueError(
        f'{source} is not the expected {NAME} text of {info.size:d} bytes '
        f'with SHA-256 {info.checksum}.'
    ) from error
  except (OSError, tfds.download.DownloadError) as error:
    advice = (
        f' Without a network, get {url} some other way and name its directory '
        'with --manual_dir.'
    )
    raise errors.UserError(
        f'{NAME} could not be prepared in {data_dir} from {source}: '
        f'{records.first_line(error)}.' + (advice if manual_dir is None else '')
    ) from error
  return pathlib.Path(builder.data_dir)


def read(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns the texts of train, validation and test.

  Args:
    data_dir: Where data sets lie: the parent of `tiny_shakespeare`.

  Raises:
    UserFileNotFoundError: If it was never prepared, saying how to.
    UserError: If its files cannot be read.
  """
  return records.read(
      data_dir, NAME, VERSION, corpus.SPLITS,
      'To download it: {command} (with --manual_dir=DIR it takes '
      f'DIR/{FILE} instead, without a network).',
      convert=lambda split: split[0]['text'].decode('utf-8'),
  )


def describe(data_dir: pathlib.Path) -> dict[str, str]:
  """Returns what each split holds, for people."""
  return {
      split: f'{len(text):,} characters'
      for split, text in read(data_dir).items()
  }
