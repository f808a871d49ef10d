"""What every method must keep, on tiny models of every family."""

from typing import TYPE_CHECKING

from steerbench.lazy_names import lazily

if TYPE_CHECKING:
    from steerbench.contract.check import Result as Result
    from steerbench.contract.check import check_method as check_method
    from steerbench.contract.check import families as families
    from steerbench.contract.invariants import INVARIANTS as INVARIANTS
    from steerbench.contract.parametrization import parametrize as parametrize

__getattr__, __dir__ = lazily(__name__, __file__)
