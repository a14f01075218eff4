"""Whole models: what surrounds a layer, written once for all layers."""

from rnnzoo.models.actor_critic import ActorCritic as ActorCritic
from rnnzoo.models.autoencoder import SequenceAutoencoder as SequenceAutoencoder
from rnnzoo.models.backbone import Backbone as Backbone
from rnnzoo.models.classifier import SequenceClassifier as SequenceClassifier
from rnnzoo.models.config import ModelConfig as ModelConfig
from rnnzoo.models.decision_model import BehaviourCloning as BehaviourCloning
from rnnzoo.models.decision_model import DecisionModel as DecisionModel
from rnnzoo.models.dlinear import DLinear as DLinear
from rnnzoo.models.experts import Experts as Experts
from rnnzoo.models.experts import balance_loss as balance_loss
from rnnzoo.models.forecaster import Forecaster as Forecaster
from rnnzoo.models.language_model import LanguageModel as LanguageModel
from rnnzoo.models.language_model import OutputMap as OutputMap
from rnnzoo.models.pair_classifier import PairClassifier as PairClassifier
from rnnzoo.models.point_process import PointProcess as PointProcess
from rnnzoo.models.presets import PRESETS as PRESETS
from rnnzoo.models.regressor import SequenceRegressor as SequenceRegressor
from rnnzoo.models.sequence_model import SequenceCarry as SequenceCarry
from rnnzoo.models.shared import SharedBlock as SharedBlock
from rnnzoo.models.shared import SharedUse as SharedUse
from rnnzoo.models.video import VideoPredictor as VideoPredictor
