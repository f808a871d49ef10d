"""The capability check of a study: a task with choices that no method learns from, by which damage is told."""

from collections.abc import Sequence
from pathlib import Path

from steerbench.data.splits import folder_of, load_data
from steerbench.data.task import Example, Task, TaskData
from steerbench.errors import SteerbenchError
from steerbench.plugins.spec import Part, changed_settings, label_of
from steerbench.records.identity import Key, ids_hash


class Capability:
    """A task that is asked under each steering of another task's study."""

    def __init__(self, part: Part, task: Task) -> None:
        self.name, self.task = label_of(part.name, task), task
        self._folder, self._revision = part.name, ""

    def load(self, path: Path | None, beside: Path | None) -> TaskData:
        """Read its data: from a path, from the folder of its name in that of the study's data, or from the Hub."""
        if path is None and beside is not None and (beside / self._folder).is_dir():
            path = beside
        try:
            data = load_data(self.task, folder_of(self._folder, path))
        except SteerbenchError as error:  # --data is the study's
            told = str(error).replace("--data", "--capability-data")
            raise SteerbenchError(f"capability check {self.name}: {told}") from error
        self._revision = data.revision
        return data

    def check(self, questions: Sequence[Example]) -> None:
        """Raise SteerbenchError if it has no question that the model can take, or if they have no choices."""
        if not questions:
            raise SteerbenchError(f"no question of {self.name} fits the model; raise --max-prompt-tokens.")
        if not all(question.choices for question in questions):
            raise SteerbenchError(f"task {self.name} has no choices to be scored; give --capability mmlu.")

    def key(self, questions: Sequence[Example]) -> Key:
        """Return what must be equal for two checks to be comparable."""
        settings = changed_settings(self.task)
        return {
            "task": self.name,
            **({"task_settings": settings} if settings else {}),
            "task_version": self.task.version,
            "data": self._revision,
            "n_examples": len(questions),
            "examples": ids_hash([question.id for question in questions]),
        }
