"""Seeds derived from named parts, so that what one part draws never depends on another."""

import hashlib

import torch


def seed_for(base: int, *names: object) -> int:
    """Return a 63-bit seed for the named part of a run with seed `base`."""
    text = "\x1f".join(map(str, (base, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(base: int, *names: object) -> torch.Generator:
    """Return a CPU generator for the named part, so that draws are equal on every device."""
    return torch.Generator().manual_seed(seed_for(base, *names))
