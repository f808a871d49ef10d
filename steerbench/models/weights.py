"""How large the weights of a model are."""

from torch import nn


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of weights that a pass reads: all, but of a table of embeddings that is no head, next to none.

    A table that is shared with the head counts once, for the head.
    """
    weighted = [m for m in model.modules() if getattr(m, "weight", None) is not None]
    tables = {id(m.weight) for m in weighted if isinstance(m, nn.Embedding)}
    maps = {id(m.weight) for m in weighted if not isinstance(m, nn.Embedding)}
    return sum(p.nbytes for p in model.parameters() if id(p) not in tables - maps)
