"""Nothing that is read from a file is unpickled, executed or led astray."""

import ast
import io
import json
import pathlib
import pickle
import shutil
import sys
import tempfile
import zipfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from rnnzoo import data
from rnnzoo import errors
from rnnzoo import layers
from rnnzoo.training import checkpoint
from rnnzoo.training.checkpoint import paths
from rnnzoo.training.checkpoint import record as record_lib
import tensorstore as ts
from tests.data.builders import tiny_shakespeare_test as shakespeare

_ROOT = pathlib.Path(__file__).parents[1]
_MODULES = {
    'pickle', '_pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib', 'marshal',
    'shelve', 'jsonpickle', 'torch', 'runpy',
}
_CALLS = {
    'eval', 'exec', 'compile', '__import__', 'os.system', 'os.popen',
    'importlib.import_module', 'yaml.load',
    # JAX's compiled programs, which are pickles.
    'serialize_executable.deserialize_and_load',
}
_ALLOWED = {
    # Modules of ours, by names that stand in the source.
    ('rnnzoo/__init__.py', 'importlib.import_module'),
    ('rnnzoo/ops/linear_scan/dispatch.py', 'importlib.import_module'),
    ('rnnzoo/layers/base.py', 'importlib.import_module'),
    # An optional package, by its name in the source.
    ('rnnzoo/environments/from_gymnax.py', 'importlib.import_module'),
    # While a pickle is loaded, which imports modules anyway.
    ('rnnzoo/layers/pickling.py', 'importlib.import_module'),
    # A model of transformers, which reads a file of safetensors.
    ('experiments/benchmarks/convert_speed.py', 'torch'),
    ('experiments/faults/inject.py', 'runpy'),
    ('experiments/cli/processes.py', 'runpy'),
}


def dangers(source: str):
  """Yields `(line, name)` of what may run a file's contents as code."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [f'{node.module}.{alias.name}' for alias in node.names]
    else:
      names = []
    for name in names:
      if _MODULES & set(name.split('.')):
        yield node.lineno, name
    if isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      options = {k.arg: ast.unparse(k.value) for k in node.keywords}
      if name in ('np.load', 'numpy.load', 'jnp.load'):
        if options.get('allow_pickle') != 'False':
          yield node.lineno, name
      if name in _CALLS or name.endswith('.exec_module'):
        yield node.lineno, name
      if name.split('.')[-1] in ('loads', 'Unpickler') and 'json' not in name:
        yield node.lineno, name
      if options.get('allow_pickle', 'False') != 'False':
        yield node.lineno, 'allow_pickle'
      if options.get('shell', 'False') != 'False':
        yield node.lineno, 'shell'


class SourceTest(parameterized.TestCase):

  def test_no_file_is_run(self):
    found = []
    for folder in ('rnnzoo', 'experiments', 'scripts'):
      for path in sorted((_ROOT / folder).rglob('*.py')):
        name = str(path.relative_to(_ROOT))
        found += [
            f'{name}, line {line}: {what}'
            for line, what in dangers(path.read_text())
            if (name, what) not in _ALLOWED
        ]
    self.assertEmpty(found, '\n'.join(found))

  @parameterized.parameters(
      'import pickle', 'from pickle import load', 'import joblib as j',
      'from six.moves import cPickle', 'eval(text)', 'exec(f.read())',
      'np.load(path)', 'np.load(path, allow_pickle=True)', 'p.loads(b)',
      'importlib.import_module(name)', 'spec.loader.exec_module(module)',
      'subprocess.run(text, shell=True)', 'os.system(text)',
  )
  def test_a_danger_is_noticed(self, source):
    self.assertNotEmpty(list(dangers(source)))

  @parameterized.parameters(
      'np.load(path, allow_pickle=False)', 'json.loads(text)',
      'jitted.compile()', 'ast.literal_eval(text)', 'subprocess.run([a, b])',
      're.compile(text)',
  )
  def test_other_things_are_not(self, source):
    self.assertEmpty(list(dangers(source)))


class Touch:
  """Unpickled, it makes a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


class FilesTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory())
    )
    self.ran = self.directory / 'ran'
    self.pickle = pickle.dumps(Touch(self.ran))

  def lay_bait(self):
    """Writes a module `bait` that can be imported."""
    (self.directory / 'bait.py').write_text(
        f'import pathlib\npathlib.Path({str(self.ran)!r}).touch()\n'
    )
    sys.path.insert(0, str(self.directory))
    self.addCleanup(sys.path.remove, str(self.directory))

  def tearDown(self):
    super().tearDown()
    self.assertFalse(self.ran.exists(), 'Something was executed.')


class PickleTest(FilesTestCase):

  def test_the_bait(self):
    pickle.loads(self.pickle)
    self.assertTrue(self.ran.exists())
    self.ran.unlink()

  def test_carry(self):
    path, like = self.directory / 'carry.npz', dict(h=jnp.zeros((1, 2)))
    layers.save_carry(path, like)
    with np.load(path, allow_pickle=False) as entries:
      whole = dict(entries)
    bait = np.array([Touch(self.ran)], object)
    for name in whole:
      np.savez(path, **whole | {name: bait})
      with self.assertRaisesRegex(errors.UserValueError, 'damaged'):
        layers.load_carry(path, like)
    # Nothing is unpacked before it is known to be what was asked for.
    zeros = np.lib.stride_tricks.as_strided(np.zeros(1), (2**28,), (0,))
    record = whole.pop('rnnzoo_carry')
    for entries in (
        {'rnnzoo_carry': record, "carry['h']": zeros},
        {'rnnzoo_carry': record} | whole | {'more': zeros},
        {'rnnzoo_carry': np.array('x' * 2**21)} | whole,
    ):
      with zipfile.ZipFile(path, 'w') as archive:
        for name, array in entries.items():
          header = io.BytesIO()
          np.lib.format.write_array_header_1_0(
              header, np.lib.format.header_data_from_array_1_0(array)
          )
          archive.writestr(f'{name}.npy', header.getvalue() + (
              array.tobytes() if array.size < 2**20 else b''
          ))
      with self.assertRaisesRegex(errors.UserValueError, 'damaged'):
        layers.load_carry(path, like)
    for write in (
        lambda: path.write_bytes(self.pickle),
        lambda: np.save(path.open('wb'), bait, allow_pickle=True),
    ):
      write()
      with self.assertRaisesRegex(errors.UserValueError, 'damaged'):
        layers.load_carry(path, like)

  def test_text(self):
    path = self.directory / 'text'
    path.write_bytes(self.pickle)
    with self.assertRaisesRegex(errors.UserValueError, 'not UTF-8'):
      data.load(
          dict(name='text_file', path=str(path)), batch_size=1, seed=0
      )


class CheckpointTest(FilesTestCase):
  """Steps 1 and 2; what comes is done to the second."""

  def setUp(self):
    super().setUp()
    self.workdir = self.directory / 'run'
    self.checkpoints = self.workdir / 'checkpoints'
    with checkpoint.Checkpointer(self.checkpoints) as saver:
      for step in (1, 2):
        saver.save(step, self.state(step), dict(config={}))
    self.step = self.checkpoints / '2'

  def state(self, step):
    # Large enough to lie in a file of its own, and too small.
    big = jnp.arange(2000.0, dtype=jnp.float32) * jnp.pi % 1
    return dict(params=dict(w=big + step, b=jnp.ones(3) * step))

  def restored(self, **options):
    """Returns the step that is restored, every number of it right."""
    with checkpoint.Checkpointer(self.checkpoints, readonly=True) as saver:
      step, state, _ = saver.restore(self.state(0), **options)
    jax.tree.map(np.testing.assert_array_equal, state, self.state(step))
    return step

  def test_pickles_in_place_of_its_files(self):
    self.assertEqual(self.restored(), 2)
    original = self.directory / 'original'
    shutil.copytree(self.step, original)
    files = [p for p in sorted(original.rglob('*')) if p.is_file()]
    self.assertGreater(len(files), 8)
    for path in files:
      place = self.step / path.relative_to(original)
      place.write_bytes(self.pickle)
      self.assertIn(self.restored(), (1, 2), path)
      shutil.copy(path, place)
    # Orbax's older form, one file for all.
    (self.step / 'state' / '_METADATA').unlink()
    (self.step / 'state' / 'checkpoint').write_bytes(self.pickle)
    self.assertIn(self.restored(), (1, 2))

  def test_nothing_is_unpickled(self):
    seen, active = [], [True]

    def hook(event, args):
      if event == 'pickle.find_class' and active:
        seen.append(args)

    sys.addaudithook(hook)  # For good; but it can be made idle.
    try:
      pickle.loads(pickle.dumps(pathlib.Path('a')))
      self.assertNotEmpty(seen)
      seen.clear()
      self.assertEqual(self.restored(), 2)
      self.assertEmpty(seen)
    finally:
      active.clear()

  def test_no_class_that_orbax_notes_is_imported(self):
    self.lay_bait()
    path = self.step / '_CHECKPOINT_METADATA'
    record = json.loads(path.read_text())
    record['item_handlers'] = dict.fromkeys(record['item_handlers'], 'bait.X')
    path.write_text(json.dumps(record))
    path = self.step / 'state' / '_METADATA'
    path.write_text(path.read_text().replace('jax.Array', 'bait.X'))
    self.assertIn(self.restored(), (1, 2))
    self.assertNotIn('bait', sys.modules)

  @parameterized.parameters('../x', '/x', 'params/../../x', '~/x', 'gs://x/y')
  def test_paths_in_our_record(self, name):
    path = self.step / 'meta' / 'metadata'
    record = json.loads(path.read_text())
    record['leaves'][name] = record['leaves']['params/w']
    # One who writes such a thing makes the sum right, too.
    record['sha256'] = record_lib.checksum(record)
    path.write_text(json.dumps(record))
    self.assertEqual(self.restored(partial=True), 1)
    with self.assertRaisesRegex(errors.UserError, f"names '{name}'"):
      self.restored(step=2, partial=True)

  @parameterized.parameters('../../1/state/params', '/etc/passwd')
  def test_paths_in_orbax_records(self, name):
    for file, key in (('_METADATA', '"b"'), ('array_metadatas/process_0', '')):
      path = self.step / 'state' / file
      text = path.read_text()
      new = text.replace(key or '"params.b"', json.dumps(name))
      self.assertNotEqual(new, text)
      path.write_text(new)
      self.assertEqual(self.restored(), 1)
      with self.assertRaisesRegex(errors.UserError, 'is damaged.*names'):
        self.restored(step=2)
      path.write_text(text)

  @parameterized.parameters(
      ('../../elsewhere/', '{}'), ('', '../../elsewhere/{}'),
      ('', '{root}/elsewhere/{}'), ('{root}/elsewhere/', '{}'),
  )
  def test_paths_in_the_manifest(self, base, file):
    state = self.step / 'state'
    store = ts.KvStore.open(dict(driver='file', path=f'{state}/')).result()
    manifest = ts.ocdbt.dump(store).result()
    root = manifest['versions'][-1]['root']
    kind, _, old, *bounds = root['location'].split(':')
    # What it leads to is there, and is right.
    shutil.copytree(state, self.checkpoints / 'elsewhere')
    shutil.copytree(
        self.checkpoints / 'elsewhere', self.step / 'elsewhere'
    )
    new = [u.format(old, root=self.checkpoints) for u in (base, file)]
    root['location'] = ':'.join([kind, *new, *bounds])
    (state / 'manifest.ocdbt').write_bytes(
        ts.ocdbt.undump_manifest(manifest)
    )
    self.assertIn(
        'elsewhere', ts.ocdbt.dump(store).result()['versions'][-1]['root'][
            'location'
        ]
    )
    shutil.rmtree(state / 'd')
    self.assertEqual(self.restored(), 1)

  @parameterized.parameters('..', '.', '/a', '../b', 'a/../../b', '~', 's3://b')
  def test_names_that_are_not_saved(self, name):
    self.assertTrue(paths.leads_out(name))
    with checkpoint.Checkpointer(self.checkpoints) as saver:
      with self.assertRaisesRegex(ValueError, 'leads out'):
        saver.save(3, {name: jnp.ones(1)}, {})

  @parameterized.parameters(
      'w', 'params/w', 'opt_state/0/mu/a.b', '...', 'a..b'
  )
  def test_names_that_are(self, name):
    self.assertFalse(paths.leads_out(name))


class DataTest(FilesTestCase):

  def setUp(self):
    super().setUp()
    original = self.directory / 'original'
    original.mkdir()
    (original / 'input.txt').write_bytes(shakespeare.TEXT.encode())
    self.place = shakespeare.tiny_shakespeare.prepare(
        self.directory / 'data', original,
        shakespeare.builder_of(shakespeare.TEXT.encode()),
    )

  def read(self):
    return shakespeare.tiny_shakespeare.read(self.directory / 'data')

  def test_pickles_in_place_of_its_files(self):
    for path in sorted(self.place.iterdir()):
      old = path.read_bytes()
      path.write_bytes(self.pickle)
      with self.assertRaises(errors.UserError):
        self.read()
      path.write_bytes(old)
    self.assertEqual(self.read()['train'], shakespeare.TEXT[: int(
        len(shakespeare.TEXT) * 0.9
    )])

  @parameterized.parameters(
      '{"pythonClassName": "bait.Text", "text": {}}',
      '{"type": "bait.Text", "content": {}}',
  )
  def test_no_module_that_it_names_is_imported(self, feature):
    self.lay_bait()
    path = self.place / 'features.json'
    tree = json.loads(path.read_text())
    tree['featuresDict']['features']['text'] = json.loads(feature)
    path.write_text(json.dumps(tree))
    with self.assertRaisesRegex(errors.UserError, "names 'bait.Text'"):
      self.read()
    self.assertNotIn('bait', sys.modules)

  def test_its_files_lie_beside_each_other(self):
    elsewhere = self.place.parent / 'elsewhere'
    shutil.copytree(self.place, elsewhere)
    path = self.place / 'dataset_info.json'
    text = path.read_text()
    path.write_text(text.replace('{DATASET}-', '../elsewhere/{DATASET}-'))
    self.assertNotEqual(path.read_text(), text)
    with self.assertRaisesRegex(errors.UserError, 'does not lie beside'):
      self.read()


if __name__ == '__main__':
  absltest.main()
