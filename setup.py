"""Installs rnnzoo; `scripts/quickstart` does it for you."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent

# Lower bounds only: each release of JAX, Flax and Orbax says itself which
# Python it needs, and pip picks the pairs that fit.
_REQUIRES = [
    'absl-py>=2.1',
    'flax>=0.12.8',
    'grain>=0.2.18',
    'importlib_resources',  # tensorflow-datasets imports it, undeclared.
    'jax>=0.10.2',
    'matplotlib>=3.8',
    'ml_collections>=1.1.0',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'pillow>=9.2',  # Matplotlib needs it, too.
    'requests>=2.31',
    'tensorflow-datasets>=4.9.10',
    'tqdm>=4.66',
]

_EXTRAS = {
    # Accelerators.
    'cuda': ['jax[cuda13]>=0.10.2'],
    'tpu': ['jax[tpu]>=0.10.2'],
    # More data sets, more ways to look at a run, more formats.
    'digits': ['scikit-learn>=1.5'],
    'timeseries': ['aeon>=1.0'],  # Its files; it is not imported.
    'streams': ['statsmodels>=0.14'],  # Likewise.
    'rl': ['gymnax>=1.0.1'],  # More environments; it wants jax<0.12.
    'tf': ['tensorflow-cpu>=2.21'],
    'tensorboard': ['tensorboardX>=2.6'],
    'export': ['flatbuffers>=24.3'],
    'convert': ['safetensors>=0.8', 'tokenizers>=0.21'],
    'tokenizers': ['tokenizers>=0.21'],
    'chat': ['jinja2>=3.1.6'],  # Chat templates of pretrained models.
    # Environments that are no part of rnnzoo: gymnasium's of MuJoCo.
    'decisions': ['gymnasium[mujoco]>=1.0', 'h5py>=3.10'],
    # Work on rnnzoo itself: `scripts/test`, and what looks at a change first.
    'dev': ['pre-commit>=4'],
    'test': [
        'basedpyright>=1.40.2',
        'flatbuffers>=24.3',
        'jinja2>=3.1.6',
        'pytest>=8',
        'pytest-xdist>=3.6',
        'ruff>=0.9',
        'safetensors>=0.8',
        'scikit-learn>=1.5',
        'tensorboardX>=2.6',
        'tokenizers>=0.21',
    ],
}

setuptools.setup(
    name='rnnzoo',
    version='0.1.0',
    description='A zoo of modern recurrent networks in JAX and Flax.',
    long_description=(_HERE / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The rnnzoo authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='jax flax rnn recurrent state-space lru mingru minlstm',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    # The experiments run from the repository and are not installed.
    packages=setuptools.find_packages(include=['rnnzoo', 'rnnzoo.*']),
    package_data={'rnnzoo': ['py.typed']},
    python_requires='>=3.11',
    install_requires=_REQUIRES,
    extras_require=_EXTRAS,
)
