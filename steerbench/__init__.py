"""steerbench: which steering method for your language model, and what it costs.

Everything public is importable from here. Names are loaded when first used: importing steerbench imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from steerbench.ascent import Ascent as Ascent
    from steerbench.ascent import step_for as step_for
    from steerbench.bench import Options as Options
    from steerbench.ccs import CCS as CCS
    from steerbench.ccs import fit_ccs as fit_ccs
    from steerbench.dialogue import Dialogue as Dialogue
    from steerbench.dialogue import Turn as Turn
    from steerbench.dialogue import parse_hh as parse_hh
    from steerbench.dialogue import plain_text as plain_text
    from steerbench.dialogue import user as user
    from steerbench.directions import Contrast as Contrast
    from steerbench.directions import at_relative_norm as at_relative_norm
    from steerbench.directions import contrast as contrast
    from steerbench.directions import contrasts as contrasts
    from steerbench.directions import difference_of_means as difference_of_means
    from steerbench.directions import principal_difference as principal_difference
    from steerbench.directions import singular_directions as singular_directions
    from steerbench.directions import toward_preferred as toward_preferred
    from steerbench.edits import Add as Add
    from steerbench.edits import AddInFront as AddInFront
    from steerbench.errors import SteerbenchError as SteerbenchError
    from steerbench.generation import activations as activations
    from steerbench.generation import generate as generate
    from steerbench.generation import log_probs as log_probs
    from steerbench.generation import response_logits as response_logits
    from steerbench.harness import run as run
    from steerbench.layers import block_at as block_at
    from steerbench.layers import elbow as elbow
    from steerbench.layers import middle_layer as middle_layer
    from steerbench.lm import LanguageModel as LanguageModel
    from steerbench.lm import Tokens as Tokens
    from steerbench.pairs import PairSource as PairSource
    from steerbench.projections import Ablate as Ablate
    from steerbench.projections import Gated as Gated
    from steerbench.projections import RemoveBoost as RemoveBoost
    from steerbench.protocol import Decoding as Decoding
    from steerbench.protocol import Protocol as Protocol
    from steerbench.ranking import leaderboard as leaderboard
    from steerbench.records import Record as Record
    from steerbench.records import Store as Store
    from steerbench.registry import add_plugin as add_plugin
    from steerbench.registry import load as load
    from steerbench.registry import names as names
    from steerbench.response import Response as Response
    from steerbench.reward import Reward as Reward
    from steerbench.reward import RewardModel as RewardModel
    from steerbench.self_generation import SelfGenerated as SelfGenerated
    from steerbench.self_generation import self_generated as self_generated
    from steerbench.sites import Site as Site
    from steerbench.states import States as States
    from steerbench.steerer import FitContext as FitContext
    from steerbench.steerer import Pair as Pair
    from steerbench.steerer import Rollout as Rollout
    from steerbench.steerer import Steerer as Steerer
    from steerbench.steering import DecodePart as DecodePart
    from steerbench.steering import Edit as Edit
    from steerbench.steering import LogitsPart as LogitsPart
    from steerbench.steering import Part as Part
    from steerbench.steering import PerPosition as PerPosition
    from steerbench.steering import PlacedEdit as PlacedEdit
    from steerbench.steering import PromptPart as PromptPart
    from steerbench.steering import RankedEdit as RankedEdit
    from steerbench.steering import Steering as Steering
    from steerbench.task import Example as Example
    from steerbench.task import Task as Task
    from steerbench.task import TaskData as TaskData
    from steerbench.task import Unusable as Unusable
    from steerbench.task import field_of as field_of
    from steerbench.task import text_field as text_field
    from steerbench.value import Split as Split
    from steerbench.value import Training as Training
    from steerbench.value import ValueFunction as ValueFunction
    from steerbench.value import calibration as calibration
    from steerbench.value import train_value as train_value

_HOMES = {
    "ascent": ["Ascent", "step_for"],
    "states": ["States"],
    "value": ["Split", "Training", "ValueFunction", "calibration", "train_value"],
    "bench": ["Options"],
    "dialogue": ["Dialogue", "Turn", "parse_hh", "plain_text", "user"],
    "ccs": ["CCS", "fit_ccs"],
    "directions": [
        "Contrast",
        "at_relative_norm",
        "contrast",
        "contrasts",
        "difference_of_means",
        "principal_difference",
        "singular_directions",
        "toward_preferred",
    ],
    "edits": ["Add", "AddInFront"],
    "errors": ["SteerbenchError"],
    "generation": ["activations", "generate", "log_probs", "response_logits"],
    "ranking": ["leaderboard"],
    "layers": ["block_at", "elbow", "middle_layer"],
    "lm": ["LanguageModel", "Tokens"],
    "pairs": ["PairSource"],
    "projections": ["Ablate", "Gated", "RemoveBoost"],
    "protocol": ["Decoding", "Protocol"],
    "records": ["Record", "Store"],
    "registry": ["add_plugin", "load", "names"],
    "response": ["Response"],
    "reward": ["Reward", "RewardModel"],
    "harness": ["run"],
    "self_generation": ["SelfGenerated", "self_generated"],
    "sites": ["Site"],
    "steerer": ["FitContext", "Pair", "Rollout", "Steerer"],
    "steering": [
        "DecodePart",
        "Edit",
        "LogitsPart",
        "Part",
        "PerPosition",
        "PlacedEdit",
        "PromptPart",
        "RankedEdit",
        "Steering",
    ],
    "task": ["Example", "Task", "TaskData", "Unusable", "field_of", "text_field"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steerbench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"steerbench.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *_HOME])
