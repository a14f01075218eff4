"""The builder on a few tones in the layout of the original files."""

import io
import pathlib
import shutil
import struct
import tarfile
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from rnnzoo import errors
from rnnzoo.data.builders import speech_commands
from rnnzoo.data.builders import wav

WORDS = speech_commands.WORDS


def wav_bytes(samples, rate=16_000, channels=1, bits=16):
  """A WAV file by hand: RIFF, the format, one more chunk, the samples."""
  values = b''.join(struct.pack('<h', u) for u in samples)
  frame = channels * bits // 8
  form = struct.pack('<HHIIHH', 1, channels, rate, rate * frame, frame, bits)
  chunks = (
      b'fmt ' + struct.pack('<I', len(form)) + form
      + b'LIST' + struct.pack('<I', 4) + b'INFO'
      + b'data' + struct.pack('<I', len(values)) + values
  )
  return b'RIFF' + struct.pack('<I', 4 + len(chunks)) + b'WAVE' + chunks


class WavTest(parameterized.TestCase):

  def test_the_layout(self):
    samples = [0, 1, -1, 32_767, -32_768]
    found = wav.read(wav_bytes(samples), 'x', 16_000)
    self.assertEqual(found.tolist(), samples)
    self.assertEqual(found.dtype, np.int16)
    again = wav.read(wav.to_bytes(found, 8000), 'x', 8000)
    self.assertEqual(again.tolist(), samples)

  @parameterized.parameters(
      (wav_bytes([1, 2], rate=8000), '16 bits at 16000 Hz, got 1 and 16 at 80'),
      (wav_bytes([1, 2], channels=2), '1 channel .* got 2 and 16 at 16000 Hz'),
      (wav_bytes([1, 2], bits=8), '16 bits .* got 1 and 8 at'),
      (wav_bytes([]), 'must hold 0 samples, got 0: it is empty'),
      (wav_bytes([1, 2, 3])[:-2], '3 samples, got 2: it is empty or cut short'),
      (wav_bytes([1])[:30], 'cannot be read as a WAV file'),
      (b'', 'cannot be read as a WAV file'),
      (b'text, and more text', 'cannot be read as a WAV file'),
      # The size of the part that has the form.
      (wav_bytes([1])[:16] + b'\xff' * 4 + wav_bytes([1])[20:],
       'cannot be read as a WAV file: RuntimeError'),
  )
  def test_wrong_files(self, content, message):
    with self.assertRaisesRegex(errors.UserValueError, f'^x .*{message}'):
      wav.read(content, 'x', 16_000)

  def test_one_second(self):
    short, long = np.arange(3, dtype=np.int16), np.ones(16_002, np.int16)
    found = speech_commands.one_second(short)
    self.assertEqual(found.tolist(), [0, 1, 2] + 15_997 * [0])
    self.assertEqual(speech_commands.one_second(long).tolist(), 16_000 * [1])


class OriginalsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    place = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data_dir, self.manual_dir = place / 'data', place / 'original'
    self.manual_dir.mkdir()
    self.lists = dict(validation=['yes/b.wav'], test=['yes/a.wav', 'no/c.wav'])
    for word in WORDS:
      (self.manual_dir / word).mkdir()
      for file in 'abcd' if word in ('yes', 'no') else 'xyz':
        (self.manual_dir / word / f'{file}.wav').touch()
      if word not in ('yes', 'no'):
        self.lists['validation'].append(f'{word}/y.wav')
        self.lists['test'].append(f'{word}/z.wav')
    self.lists['validation'].append('no/d.wav')
    self.write_lists()

  def write_lists(self):
    for part, names in self.lists.items():
      path = self.manual_dir / speech_commands.LISTS[part]
      path.write_text('\n'.join([*names, '']))

  def test_the_lists_decide(self):
    found = speech_commands.file_names(self.manual_dir, check=False)
    self.assertLen(found, 3 * 35)
    self.assertEqual(found['train_yes'], ['yes/c.wav', 'yes/d.wav'])
    self.assertEqual(found['validation_yes'], ['yes/b.wav'])
    self.assertEqual(found['test_yes'], ['yes/a.wav'])
    self.assertEqual(found['train_no'], ['no/a.wav', 'no/b.wav'])
    self.assertEqual(found['test_zero'], ['zero/z.wav'])

  def test_wrong_folders(self):
    def fails(error, message, check=False):
      with self.assertRaisesRegex(error, message):
        speech_commands.file_names(self.manual_dir, check)

    fails(
        errors.UserValueError,
        'must hold 105,829 WAV files in folders of 35 words, got 107', True,
    )
    (self.manual_dir / 'zero' / 'z.wav').unlink()
    fails(
        errors.UserFileNotFoundError,
        'no file zero/z.wav in .*, which testing_list.txt names. Unpack',
    )
    self.lists['test'].remove('zero/z.wav')
    self.write_lists()
    fails(errors.UserValueError, 'no WAV file of the word zero for test')
    path = self.manual_dir / 'testing_list.txt'
    path.write_bytes(b'\xff\xfe')
    fails(errors.UserValueError, f'^{path} is not UTF-8: .*Unpack')
    self.write_lists()
    (self.manual_dir / 'validation_list.txt').unlink()
    fails(errors.UserFileNotFoundError, 'no file validation_list.txt in')

  def test_missing_originals(self):
    shutil.rmtree(self.manual_dir)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'There is no file speech_commands_v0.02.tar.gz, and .* http://',
    ) as caught:
      speech_commands.prepare(self.data_dir, self.manual_dir)
    self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(errors.UserValueError, 'needs --manual_dir=DI'):
      speech_commands.prepare(self.data_dir)
    with self.assertRaisesRegex(
        errors.UserFileNotFoundError,
        'speech_commands is not in .* scripts/prepare_datasets.py '
        'speech_commands --data_dir=.* --manual_dir=DIR.* from http://',
    ):
      speech_commands.read(self.data_dir)

  def test_archives(self):
    archive = self.manual_dir.parent / speech_commands.ARCHIVE
    with tarfile.open(archive, 'w:gz') as files:
      def add(name, content=b'1', **fields):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
          setattr(info, field, value)
        files.addfile(info, io.BytesIO(content))

      add('./testing_list.txt', b'yes/a.wav')
      add('./yes/a.wav', b'abc')
      add('./no/b.wav', b'def')
      for name in (
          './README.md', './_background_noise_/x.wav', './yes/../../x.wav',
          '/x.wav', '../yes/x.wav', './other/x.wav', './yes/x.txt',
      ):
        add(name)
      add('./up/link.wav', b'', type=tarfile.SYMTYPE, linkname='../../x')
    place = self.manual_dir.parent / 'unpacked'
    place.mkdir()
    speech_commands.unpack(archive, place)
    found = {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob('*') if not path.is_dir()
    }
    self.assertEqual(found, {
        'testing_list.txt': b'yes/a.wav', 'yes/a.wav': b'abc',
        'no/b.wav': b'def',
    })
    self.assertFalse((place.parent / 'x.wav').exists())
    with self.assertRaisesRegex(
        errors.UserValueError, 'not the original file.*, not af14739e'
    ):
      speech_commands.prepare(self.data_dir, archive.parent)
    archive.write_bytes(archive.read_bytes()[:200])
    with self.assertRaisesRegex(errors.UserError, 'gz cannot be read: '):
      list(speech_commands.originals.members(archive, lambda name: True))


class BuilderTest(absltest.TestCase):
  """All on one prepared data set; what is damaged is put back."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    place = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.data_dir, packed = place / 'data', place / 'packed'
    cls.originals = place / 'original'
    for directory in (packed, cls.originals):
      directory.mkdir()
    speech_commands.write_fixture_files(cls.originals)
    with tarfile.open(
        packed / speech_commands.ARCHIVE, 'w:gz', compresslevel=1
    ) as files:
      files.add(cls.originals, '.')

    class Small(speech_commands.SpeechCommands, skip_registration=True):
      name = speech_commands.NAME
      check_originals = False

    cls.directory = speech_commands.prepare(cls.data_dir, packed, Small)

  def expected(self, words):
    """All samples and labels by part, from the files themselves."""
    names = speech_commands.file_names(self.originals, check=False)
    found = {}
    for part in speech_commands.PARTS:
      clips, labels = [], []
      for label, word in enumerate(words):
        for name in names[f'{part}_{word}']:
          content = (self.originals / name).read_bytes()
          samples = wav.read(content, name, 16_000).tolist()
          clips.append(samples + (16_000 - len(samples)) * [0])
          labels.append(label)
      found[part] = np.array(clips), np.array(labels)
    return found

  def test_roundtrip(self):
    self.assertContainsSubset(  # Nothing temporary is left.
        {path.name for path in self.data_dir.iterdir()},
        {'downloads', 'speech_commands'},
    )
    for words, count in ((WORDS, 105), (WORDS[:10], 80)):
      content = speech_commands.read(self.data_dir, words)
      expected = self.expected(words)
      for part, (clips, labels) in expected.items():
        found = content.clips[part]
        self.assertLen(found, len(clips))
        rows = np.random.default_rng(0).permutation(len(clips))
        np.testing.assert_array_equal(found[rows], clips[rows])
        self.assertEqual(found[rows].dtype, np.int16)
        np.testing.assert_array_equal(content.labels[part], labels)
        self.assertEqual(content.labels[part].dtype, np.int32)
      train = expected['train'][0].astype(np.float64)
      self.assertLen(train, count)
      self.assertAlmostEqual(content.mean, train.mean(), 6)
      self.assertAlmostEqual(content.deviation, train.std(), 6)
    self.assertEqual(
        speech_commands.describe(self.data_dir),
        dict(train='105 clips', validation='45 clips', test='45 clips'),
    )

  def test_words_and_clips_are_read_only_when_needed(self):
    path = self.directory / (
        'speech_commands-train_zero.array_record-00000-of-00001'
    )
    whole = path.read_bytes()
    try:
      for content in (b'', whole[: len(whole) // 2], None):
        path.unlink()
        if content is not None:
          path.write_bytes(content)
        few = speech_commands.read(self.data_dir, WORDS[:10])
        self.assertLen(few.clips['train'], 80)
        clips = speech_commands.read(self.data_dir).clips['train']
        clips[np.array([0])]
        with self.assertRaisesRegex(
            errors.UserError,
            f'{path.name} of speech_commands cannot be read .* again: ',
        ) as caught:
          clips[np.array([0, 104])]
        self.assertNotIn('\n', str(caught.exception))
        path.touch()
    finally:
      path.write_bytes(whole)

  def test_another_clip_is_another_data_set(self):
    content = speech_commands.read(self.data_dir)
    self.assertNotEqual(
        content.sha256,
        speech_commands.read(self.data_dir, WORDS[:10]).sha256,
    )


if __name__ == '__main__':
  absltest.main()
