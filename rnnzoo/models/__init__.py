"""Floor 2: what goes around a layer, once."""

from rnnzoo.models.backbone import Backbone as Backbone
from rnnzoo.models.config import ModelConfig as ModelConfig
from rnnzoo.models.models import ClassifierCarry as ClassifierCarry
from rnnzoo.models.models import LanguageModel as LanguageModel
from rnnzoo.models.models import SequenceClassifier as SequenceClassifier
from rnnzoo.models.presets import PRESETS as PRESETS
