"""Imports that take seconds: torch, transformers, and what stands on them."""

import gc
import sys
from importlib import import_module


def import_swiftly(module: str) -> None:
    """Import a module without the garbage collector.

    torch and transformers make a million objects that stay. Looking through them again and again is a sixth of the
    time, and finds nothing.
    """
    if module in sys.modules:
        return
    collecting = gc.isenabled()
    gc.disable()
    try:
        import_module(module)
    finally:
        if collecting:
            gc.freeze()
            gc.unfreeze()  # the two make them old unseen, so that the next collection does not begin with them
            gc.enable()
