"""steerbench: which steering method for your language model, and what it costs.

Here stands what most people need. What methods are made of is in `steerbench.edits` and `steerbench.learn`, what tasks
are made of in `steerbench.data`, and the tests that every method must pass in `steerbench.contract`.
"""

from typing import TYPE_CHECKING

from steerbench.lazy_names import lazily
from steerbench.version import __version__ as __version__

if TYPE_CHECKING:
    from steerbench.bench.protocol import Protocol as Protocol
    from steerbench.bench.run import run as run
    from steerbench.bench.setup import Options as Options
    from steerbench.data.task import Example as Example
    from steerbench.data.task import Task as Task
    from steerbench.decoding import Decoding as Decoding
    from steerbench.engine.generate import generate as generate
    from steerbench.engine.steered import steered as steered
    from steerbench.errors import SteerbenchError as SteerbenchError
    from steerbench.learn.context import FitContext as FitContext
    from steerbench.learn.fitting import fit as fit
    from steerbench.learn.steerer import Steerer as Steerer
    from steerbench.learn.steerer import load as load
    from steerbench.models.language_model import LanguageModel as LanguageModel
    from steerbench.models.reward import Reward as Reward
    from steerbench.plugins.registry import add_plugin as add_plugin
    from steerbench.plugins.registry import names as names
    from steerbench.records.leaderboard import leaderboard as leaderboard
    from steerbench.records.record import Record as Record
    from steerbench.records.store import Store as Store
    from steerbench.steering.steering import Steering as Steering

__getattr__, __dir__ = lazily(__name__, __file__)
