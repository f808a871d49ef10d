"""What devices say when memory runs out, and what the user is told then."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from steerbench import Decoding

ERRORS: dict[str, Callable[[], Exception]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    "old torch": lambda: RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
    "Apple": lambda: RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 9 GB)"),
    "a CPU": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Python": lambda: MemoryError("std::bad_alloc"),
}
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)


@contextmanager
def told(too_many: int, n_rows: int) -> Iterator[None]:
    """Expect exactly one warning."""
    with pytest.warns(UserWarning, match="memory") as caught:
        yield
    text = f"the memory does not hold {too_many} sequences at once; going on with {n_rows}. "
    messages = [str(w.message) for w in caught]
    assert messages == [text + "Lower --batch-size to begin with fewer."], messages
