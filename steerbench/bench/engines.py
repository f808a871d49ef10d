"""The engine that a run generates with, and the methods that it cannot carry, told before anything is loaded."""

from collections.abc import Sequence

from steerbench.decoding import TRANSFORMERS
from steerbench.engine.backends.generation_engine import GenerationEngine
from steerbench.errors import SteerbenchError
from steerbench.learn.steerer import Steerer


def engine_of(name: str, model: str) -> GenerationEngine | None:
    """Return the engine of a name, for a model; None: transformers, which is no engine beside itself."""
    if name == TRANSFORMERS:
        return None
    from steerbench.engine.backends.vllm_engine import VllmEngine

    return VllmEngine(model)


def check_engine(name: str, methods: Sequence[Steerer]) -> None:
    """Raise SteerbenchError for methods that say that an engine cannot carry them, and where it is not installed.

    What a method does not say beforehand is told from its steering, once it is fitted.
    """
    if name == TRANSFORMERS:
        return
    if refused := list(dict.fromkeys(type(m).__name__ for m in methods if name not in type(m).engines)):
        raise SteerbenchError(
            f"engine {name} cannot carry {', '.join(refused)}: it carries prompts, edits of activations, gates, and a "
            f"choice among whole responses. Leave it out, or use --engine transformers, which carries everything."
        )
    from steerbench.engine.backends.vllm_engine import check_installed

    check_installed()


def check_at_home(name: str) -> None:
    """Raise SteerbenchError for an engine that the processes of a cluster do not start."""
    if name != TRANSFORMERS:
        raise SteerbenchError(
            f"a run that is spread over processes generates with transformers, and not with {name}, which has a "
            f"process of its own; leave out --ray or --engine {name}."
        )
