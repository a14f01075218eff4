"""The language reference of Python, which comes with the interpreter."""

from typing import Any

from rnnzoo import errors
from rnnzoo.data import definition
from rnnzoo.data import pipeline
from rnnzoo.data.text import corpus


def read() -> dict[str, str]:
  """Returns the text that `help()` shows, topics in alphabetical order.

  Topics repeat each other's sections (a fifth of all). Each paragraph is kept
  once, because the held-out text would otherwise be partly training text. The
  text differs a little between Python versions.

  Raises:
    UserFileNotFoundError: If this Python has no such module.
  """
  try:
    from pydoc_data import topics  # Some minimal Pythons leave it out.
  except ImportError as error:
    raise errors.UserFileNotFoundError(
        'python_docs is the text of the standard module pydoc_data.topics, '
        'which this Python lacks; use data.name=text_file with a text of '
        'your own.'
    ) from error
  text = '\n\n'.join(topics.topics[name] for name in sorted(topics.topics))
  return corpus.split_text('\n\n'.join(dict.fromkeys(text.split('\n\n'))))


def load(config: Any, shard: pipeline.Shard, seed: int) -> pipeline.Dataset:
  """Returns the text as a data set, see `corpus.load`."""
  return corpus.load('python_docs', read(), config, shard, seed)


DEFINITION = definition.Definition(
    task='language_modelling', fields=corpus.FIELDS, load=load
)
