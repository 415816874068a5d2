"""Tasks: where problems come from, and how answers to them are judged.

`get_task` makes one by name. Two of those built in have endless problems whose every solution step can be checked
exactly (`prmkit.protocols.VerifiableTask`); the others read files or hub datasets. `register_task` adds tasks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from prmkit.errors import ConfigError
from prmkit.plugins import Catalogue
from prmkit.protocols import Task
from prmkit.tasks import files
from prmkit.tasks.accumulator import AccumulatorTask
from prmkit.tasks.multistep_arithmetic import MultistepArithmeticTask
from prmkit.tasks.records import RecordTask

__all__ = [
    "BUILT_IN_TASKS",
    "FILE_TASKS",
    "TASKS",
    "AccumulatorTask",
    "MultistepArithmeticTask",
    "RecordTask",
    "TaskName",
    "get_task",
    "register_task",
]

BUILT_IN_TASKS = ("accumulator", "multistep_arithmetic")
FILE_TASKS = ("gsm8k", "math", "math500", "bbh", "jsonl", "hub")
TASKS: Catalogue[Callable[..., Task]] = Catalogue(
    "task",
    {
        "accumulator": AccumulatorTask,
        "multistep_arithmetic": MultistepArithmeticTask,
        "gsm8k": files.gsm8k,
        "math": files.math,
        "math500": files.math500,
        "bbh": files.bbh,
        "jsonl": files.jsonl,
        "hub": files.hub,
    },
)
TaskName = Annotated[str, TASKS]

Made = TypeVar("Made", bound=Callable[..., Any])


def register_task(name: str) -> Callable[[Made], Made]:
    """Register a task: `--task NAME`, `data.prompts.task: NAME`.

    Decorates a class or function that makes a `prmkit.protocols.Task`; its arguments are the task's options. One that
    reads a file has an argument `data`. With a method `tokenizer()` the task's name stands for that tokenizer in
    `source.tokenizer`.
    """

    def register(make: Made) -> Made:
        TASKS.add(name, make, make)
        return make

    return register


def get_task(name: str, data: str | None = None, **options: Any) -> Task:
    """A task by name.

    Args:
        name: one of `TASKS`, or `module:attribute`.
        data: file, folder or hub name for the tasks that read records; None for the built-in tasks, and to load a
            known set from the hub.
        options: fields of the task's class, or arguments of its function in `prmkit.tasks.files`.

    Raises:
        ConfigError: an unknown name or option, or `data` for a task that makes its own problems.
        DataError: `data` does not exist.
    """
    make = TASKS.find(name, "task.name")
    parameters = inspect.signature(make).parameters
    accepted = [option for option in parameters if option != "data"]
    for option, value in options.items():
        if option not in accepted:
            raise ConfigError(f"task.{option}", value, f"for {name}: {', '.join(accepted) or 'no options'}")
    if "data" in parameters:
        return make(data, **options)
    if data is not None:
        raise ConfigError("task.data", data, f"None: {name} makes its own problems")
    return make(**options)
