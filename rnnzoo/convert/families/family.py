"""What a family of pretrained models is."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rnnzoo.convert import tables
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig


class Family(NamedTuple):
  """A family of pretrained models: one file in this folder.

  Attributes:
    architecture: The class of `transformers`.
    layers: The names of our layers that its models are made of.
    read: Maps `config.json` to our config. It has to account for every value,
      see `Settings`.
    write: Maps a model of these layers to the values of `config.json`, without
      those that the next two attributes stand for.
    table: Maps our config to the tensors of blocks and norms.
    embedding: The name of the tensor of the embedding.
    head: That of the head. A model whose head is tied has none.
    renamed: Parts of names in some files, as regular expressions, and what
      they are called in others.
    prefix: What the names of tensors start with, instead of `model.`, if the
      folder has a model that reads images too.
    unused: What the names of tensors start with that are not of the language
      model, such as those of images.
    derived: What the names of tensors end with that follow from `config.json`.
  """

  architecture: str
  layers: tuple[str, ...]
  read: Callable[[Settings], ModelConfig]
  write: Callable[[Any], dict[str, Any]]
  table: Callable[[ModelConfig], tables.Table]
  embedding: str
  head: str
  renamed: Mapping[str, str] = {}
  prefix: str = ''
  unused: tuple[str, ...] = ()
  derived: tuple[str, ...] = ()

  def full_table(self, config: ModelConfig) -> tables.Table:
    """Returns the table with the embedding and the head."""
    table = {self.embedding: tables.whole('embed.embedding')}
    if not config.tie_embeddings:
      table[self.head] = tables.whole('head.kernel', tables.transposed)
    return table | dict(self.table(config))
