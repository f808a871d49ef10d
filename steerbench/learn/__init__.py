"""What a method learns with: pairs, rollouts, directions, probes, value functions, and reads of the model."""

from typing import TYPE_CHECKING

from steerbench.lazy_names import lazily

if TYPE_CHECKING:
    from steerbench.engine.activations import Pool as Pool
    from steerbench.engine.activations import activations as activations
    from steerbench.engine.logits import log_probs as log_probs
    from steerbench.engine.logits import response_logits as response_logits
    from steerbench.engine.prompting import label_scores as label_scores
    from steerbench.learn.autoregressive_reward import AdapterTraining as AdapterTraining
    from steerbench.learn.autoregressive_reward import train_autoregressive_reward as train_autoregressive_reward
    from steerbench.learn.ccs import CCS as CCS
    from steerbench.learn.ccs import fit_ccs as fit_ccs
    from steerbench.learn.context import Pair as Pair
    from steerbench.learn.directions import Contrast as Contrast
    from steerbench.learn.directions import at_relative_norm as at_relative_norm
    from steerbench.learn.directions import contrast as contrast
    from steerbench.learn.directions import contrasts as contrasts
    from steerbench.learn.directions import difference_of_means as difference_of_means
    from steerbench.learn.directions import principal_difference as principal_difference
    from steerbench.learn.directions import singular_directions as singular_directions
    from steerbench.learn.directions import toward_preferred as toward_preferred
    from steerbench.learn.edit_training import EditTraining as EditTraining
    from steerbench.learn.edit_training import TrainedEdits as TrainedEdits
    from steerbench.learn.edit_training import TrainedVector as TrainedVector
    from steerbench.learn.edit_training import Trial as Trial
    from steerbench.learn.edit_training import leaf as leaf
    from steerbench.learn.edit_training import train_edits as train_edits
    from steerbench.learn.layers import block_at as block_at
    from steerbench.learn.layers import elbow as elbow
    from steerbench.learn.layers import middle_layer as middle_layer
    from steerbench.learn.losses import DPO as DPO
    from steerbench.learn.losses import BidirectionalDPO as BidirectionalDPO
    from steerbench.learn.losses import ScaledSimPO as ScaledSimPO
    from steerbench.learn.losses import imitation as imitation
    from steerbench.learn.pairs import PairSource as PairSource
    from steerbench.learn.prompt_classes import Condition as Condition
    from steerbench.learn.prompt_classes import PromptClass as PromptClass
    from steerbench.learn.prompt_classes import Threshold as Threshold
    from steerbench.learn.prompt_classes import best_threshold as best_threshold
    from steerbench.learn.prompt_classes import between_classes as between_classes
    from steerbench.learn.prompt_classes import held_out_measures as held_out_measures
    from steerbench.learn.prompt_classes import prompt_class as prompt_class
    from steerbench.learn.prompt_classes import prompt_states as prompt_states
    from steerbench.learn.rollout import Rollout as Rollout
    from steerbench.learn.self_generation import SelfGenerated as SelfGenerated
    from steerbench.learn.self_generation import self_generated as self_generated
    from steerbench.learn.states import States as States
    from steerbench.learn.token_head import NextTokenHead as NextTokenHead
    from steerbench.learn.token_head import next_token_head as next_token_head
    from steerbench.learn.valuation import RolloutValue as RolloutValue
    from steerbench.learn.valuation import rollout_value as rollout_value
    from steerbench.learn.value import Split as Split
    from steerbench.learn.value import Training as Training
    from steerbench.learn.value import ValueFunction as ValueFunction
    from steerbench.learn.value import calibration as calibration
    from steerbench.learn.value import step_for as step_for
    from steerbench.learn.value import train_value as train_value
    from steerbench.models.language_model import Tokens as Tokens
    from steerbench.models.response import Response as Response
    from steerbench.models.reward import RewardModel as RewardModel
    from steerbench.plugins.ranges import Count as Count
    from steerbench.plugins.ranges import Heads as Heads
    from steerbench.plugins.ranges import Layer as Layer
    from steerbench.plugins.ranges import NotNegative as NotNegative
    from steerbench.plugins.ranges import Positive as Positive
    from steerbench.plugins.ranges import Range as Range
    from steerbench.plugins.ranges import Share as Share
    from steerbench.plugins.ranges import Whole as Whole

__getattr__, __dir__ = lazily(__name__, __file__)
