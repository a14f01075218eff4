"""Falcon Mamba: `FalconMambaForCausalLM` of `transformers`.

It is Mamba with RMSNorms, without parameters, of the step sizes, B and C.
"""

from typing import Any

from rnnzoo.convert.families import mamba
from rnnzoo.convert.settings import Settings
from rnnzoo.models.config import ModelConfig


def read(settings: Settings) -> ModelConfig:
  """Returns our config."""
  settings.no_effect('use_falcon_mambapy')
  epsilon = settings.positive('mixer_rms_eps', 1e-6)
  return mamba.read_common(settings, 'plain', epsilon)


def write(model: Any) -> dict[str, Any]:
  """Returns the values of `config.json` for a `LanguageModel`."""
  norms = model.backbone.stacks[0].layer.selection_norms
  epsilon = norms[0].epsilon if norms is not None else 1e-6
  return mamba.write(model) | dict(mixer_rms_eps=epsilon)


FAMILY = mamba.FAMILY._replace(
    architecture='FalconMambaForCausalLM', read=read, write=write
)
