"""What is learned: one class a task, all behind one interface (`fusion.tasks.base.Task`).

A task turns a label into a reference and a target, says which rows it can learn from, and scores
predictions. It owns what must be kept with the head to read its output (for CTC the tokeniser and the text
normalisation) and writes it into `head.json`. A new task is a module here and a line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featcache.errors import UsageError
from fusion.recipe import TaskRecipe
from fusion.tasks.base import Measure, Task
from fusion.tasks.classify import ClassifyTask
from fusion.tasks.ctc import CtcTask
from fusion.tasks.tag import TagTask

TASKS: dict[str, type[Task]] = {task.kind: task for task in (CtcTask, ClassifyTask, TagTask)}


def fit(recipe: TaskRecipe, labels: Sequence[str], frame_rate: float) -> Task:
    """The task of a recipe, fitted to the labels of train; `frame_rate` is logits a second.

    Raises:
        UsageError: there is no such task, or the labels do not suit it.
    """
    return of_kind(recipe.kind).fit(recipe, labels, frame_rate)


def of_kind(kind: str) -> type[Task]:
    """
    Raises:
        UsageError: there is no such task.
    """
    if kind not in TASKS:
        raise UsageError(f"key task.kind: {kind!r} is not allowed, use {' or '.join(TASKS)}")
    return TASKS[kind]


def from_json(value: dict[str, Any]) -> Task:
    """The task that `describe` described."""
    if value.get("kind") not in TASKS:
        raise UsageError(f"head.json names the task {value.get('kind')!r}; this version knows {', '.join(TASKS)}")
    return TASKS[value["kind"]].from_json(value)


__all__ = ["TASKS", "ClassifyTask", "CtcTask", "Measure", "TagTask", "Task", "fit", "from_json", "of_kind"]
