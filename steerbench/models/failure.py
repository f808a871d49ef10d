"""Why something failed that the rest goes on without: a sentence, or the traceback of a bug."""

import traceback

from steerbench.errors import SteerbenchError
from steerbench.models.batching import is_out_of_memory
from steerbench.models.machine import OUT_OF_MEMORY


def reason(error: Exception, no_memory: str = OUT_OF_MEMORY) -> str:
    """Return the message of a user's mistake, and the whole traceback of anything else: a bug, mostly of the method.

    `no_memory` is what a lack of memory is told as.
    """
    if isinstance(error, SteerbenchError):
        return str(error)
    if is_out_of_memory(error):
        return no_memory
    return "".join(traceback.format_exception(error)).strip()
