"""Tests of `rnnzoo.training.records` and `files`: what may lie in a workdir."""

import errno
import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from experiments.cli import tasks
from experiments.configs import default
from rnnzoo import errors
from rnnzoo.training import files
from rnnzoo.training import metrics
from rnnzoo.training import records

_BRACKETS = b'[' * 100_000
_SUMMARY = dict(
    best_eval_loss=1.5, test_loss=2, test_bits_per_token=2.9, best_step=3,
    parameters=10, seconds=0.5,
)


class RecordsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )

  @parameterized.parameters(
      (b'', 'not JSON: Expecting value at line 1, column 1'),
      (b'{"a": 1', 'not JSON: .* line 1, column 8'),
      (b'{"a\xe5": 1}', 'not JSON: invalid UTF-8 at byte 3'),
      (_BRACKETS, 'nested too deeply'),
      (b'[' * 60 + b']' * 60, 'nested too deeply'),
      (b'9' * 9999, 'not JSON: Exceeds the limit'),
  )
  def test_text_that_is_not_json_raises(self, data, said):
    with self.assertRaisesRegex(ValueError, f'^{said}'):
      records.parse(data)

  @parameterized.parameters(
      (b'{"mod\xe5l": 3}', 'is not JSON: invalid UTF-8 at byte 5'),
      (b'[]', r'is damaged: it must be a dictionary, got \[\]'),
      (b'3', 'is damaged: it must be a dictionary, got 3'),
      (b'null', 'is damaged: it must be a dictionary, got None'),
      (b'{"model": 3}', 'is damaged: model must be a dictionary, got 3'),
      (b'{"optimizer": {"options": []}}',
       'is damaged: optimizer.options must be a dictionary'),
      (_BRACKETS, 'is nested too deeply'),
  )
  def test_damaged_configs_raise(self, data, said):
    (self.workdir / 'config.json').write_bytes(data)
    metrics.plot_curves(self.workdir)  # It has no title then.
    # Nothing has been trained: it is in nobody's way.
    tasks.open_workdir(self.workdir, default.get_config())
    (self.workdir / 'checkpoints' / '4').mkdir(parents=True)
    (self.workdir / 'config.json').write_bytes(data)
    with self.assertRaisesRegex(
        errors.UserValueError, f'config.json {said}.* goes on without it'
    ):
      tasks.open_workdir(self.workdir, default.get_config())
    (self.workdir / 'config.json').unlink()
    tasks.open_workdir(self.workdir, default.get_config())

  @parameterized.parameters(
      b'', b'{"best', b'{}', b'[]', b'null', _BRACKETS,
      json.dumps(dict(_SUMMARY, test_loss=None)).encode(),
      json.dumps(dict(_SUMMARY, best_step='3')).encode(),
  )
  def test_a_damaged_summary_is_ignored_with_a_warning(self, data):
    path = self.workdir / 'summary.json'
    path.write_bytes(data)
    with self.assertLogs('absl', 'WARNING') as logs:
      self.assertIsNone(records.read_summary(path))
    self.assertIn('It is written again', logs.output[0])

  def test_a_summary_is_read_and_may_be_missing(self):
    path = self.workdir / 'summary.json'
    self.assertIsNone(records.read_summary(path))
    path.write_text(json.dumps(_SUMMARY))
    self.assertEqual(records.read_summary(path), _SUMMARY)
    lost = dict(_SUMMARY, test_loss=float('inf'))
    path.write_text(json.dumps(lost))
    self.assertEqual(records.read_summary(path), lost)
    path.unlink()
    path.mkdir()
    with self.assertRaisesRegex(errors.UserError, 'summary.json: Is a direc'):
      records.read_summary(path)
    root = pathlib.Path(__file__).parents[2] / 'experiments' / 'results'
    for path in root.glob('*/summary.json'):
      self.assertIsNotNone(records.read_summary(path), path)

  def test_title_of_damaged_files(self):
    (self.workdir / 'config.json').write_text('{"model": 3, "data": []}')
    self.assertEqual(records.title(self.workdir), {})
    (self.workdir / 'config.json').write_text(
        '{"model": {"layer": "lru"}, "data": {"name": 7}}'
    )
    (self.workdir / 'summary.json').write_text('{"parameters": 12}')
    self.assertEqual(
        records.title(self.workdir), dict(layer='lru', parameters=12)
    )

  def test_files_behind_links_are_not_changed(self):
    precious = self.workdir / 'precious'
    path = self.workdir / 'config.json'
    for name in ('config.json', 'config.json.new'):
      precious.write_text('mine')
      (self.workdir / name).symlink_to(precious)
      files.write_text(path, 'new')
      self.assertEqual(precious.read_text(), 'mine')
      self.assertEqual(path.read_text(), 'new')
      self.assertFalse(path.is_symlink())
      path.unlink()
      os.link(precious, path)
      files.write_text(path, 'new')
      self.assertEqual(precious.read_text(), 'mine')
      path.unlink()
    self.assertEqual(os.listdir(self.workdir), ['precious'])

  def test_writing_where_the_file_system_cannot_sync(self):
    path = self.workdir / 'config.json'
    for number in (errno.EINVAL, errno.ENOTSUP):
      with mock.patch.object(os, 'fsync', side_effect=OSError(number, 'no')):
        files.write_text(path, str(number))
      self.assertEqual(path.read_text(), str(number))
    with self.assertRaises(OSError), mock.patch.object(
        os, 'fsync', side_effect=OSError(errno.EIO, 'broken')
    ):
      files.write_text(path, 'new')
    self.assertEqual(path.read_text(), str(errno.ENOTSUP))


if __name__ == '__main__':
  absltest.main()
