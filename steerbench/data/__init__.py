"""What a task is made of: dialogues, examples, and readers of fields."""

from typing import TYPE_CHECKING

from steerbench.lazy_names import lazily

if TYPE_CHECKING:
    from steerbench.data.dialogue import Dialogue as Dialogue
    from steerbench.data.dialogue import Turn as Turn
    from steerbench.data.dialogue import parse_hh as parse_hh
    from steerbench.data.dialogue import plain_text as plain_text
    from steerbench.data.dialogue import user as user
    from steerbench.data.splits import load_data as load_data
    from steerbench.data.task import Choices as Choices
    from steerbench.data.task import TaskData as TaskData
    from steerbench.data.task import Unusable as Unusable
    from steerbench.data.task import field_of as field_of
    from steerbench.data.task import text_field as text_field
    from steerbench.plugins.ranges import Range as Range

__getattr__, __dir__ = lazily(__name__, __file__)
