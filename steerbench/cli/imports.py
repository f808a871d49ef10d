"""Imports that take seconds: torch, transformers, and what stands on them."""

import gc
import sys
from importlib import import_module


def import_swiftly(module: str) -> None:
    """Import a module without the garbage collector.

    torch and transformers make a million objects that stay. Looking through them again and again is a seventh of the
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
            _make_old()
            gc.enable()


def _make_old() -> None:
    """Let the next collection not begin with what was imported. What somebody froze stays so."""
    if not gc.get_freeze_count():
        gc.freeze()
        gc.unfreeze()
