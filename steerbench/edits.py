"""The parts that a steering is made of, and the places where edits act."""

from typing import TYPE_CHECKING

from steerbench.lazy_names import lazily

if TYPE_CHECKING:
    from steerbench.engine.companions import Companion as Companion
    from steerbench.models.sites import Site as Site
    from steerbench.steering.additions import Add as Add
    from steerbench.steering.additions import AddInFront as AddInFront
    from steerbench.steering.ascent import Ascent as Ascent
    from steerbench.steering.blocks import Blocks as Blocks
    from steerbench.steering.blocks import Candidate as Candidate
    from steerbench.steering.blocks import bound_of as bound_of
    from steerbench.steering.blocks import pick as pick
    from steerbench.steering.blocks import rewards_of as rewards_of
    from steerbench.steering.decoding_context import DecodingContext as DecodingContext
    from steerbench.steering.gates import ConditionGate as ConditionGate
    from steerbench.steering.instructions import AskedPart as AskedPart
    from steerbench.steering.instructions import Instruction as Instruction
    from steerbench.steering.instructions import Routed as Routed
    from steerbench.steering.instructions import Shown as Shown
    from steerbench.steering.low_rank import LowRank as LowRank
    from steerbench.steering.parts import DecodePart as DecodePart
    from steerbench.steering.parts import Edit as Edit
    from steerbench.steering.parts import Gate as Gate
    from steerbench.steering.parts import GatePool as GatePool
    from steerbench.steering.parts import LogitsPart as LogitsPart
    from steerbench.steering.parts import Part as Part
    from steerbench.steering.parts import PerPosition as PerPosition
    from steerbench.steering.parts import PlacedEdit as PlacedEdit
    from steerbench.steering.parts import PromptPart as PromptPart
    from steerbench.steering.parts import RankedEdit as RankedEdit
    from steerbench.steering.parts import Scope as Scope
    from steerbench.steering.projections import Ablate as Ablate
    from steerbench.steering.projections import Gated as Gated
    from steerbench.steering.projections import RemoveBoost as RemoveBoost
    from steerbench.steering.reweighting import Reweighting as Reweighting
    from steerbench.steering.reweighting import Twin as Twin
    from steerbench.steering.step import Step as Step
    from steerbench.steering.transports import Rotate as Rotate
    from steerbench.steering.transports import Transport as Transport

__getattr__, __dir__ = lazily(__name__, __file__)
