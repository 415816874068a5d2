"""Tasks: where problems come from, and how answers to them are judged.

`get_task` makes one by name. Two tasks are built in, with endless problems whose every solution step can be checked
exactly (`prmkit.protocols.VerifiableTask`); the others read files or hub datasets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from prmkit.errors import ConfigError
from prmkit.protocols import Task
from prmkit.tasks import files
from prmkit.tasks.accumulator import AccumulatorTask
from prmkit.tasks.multistep_arithmetic import MultistepArithmeticTask
from prmkit.tasks.records import RecordTask

__all__ = ["BUILT_IN_TASKS", "TASKS", "AccumulatorTask", "MultistepArithmeticTask", "RecordTask", "get_task"]

BUILT_IN_TASKS: dict[str, Callable[..., Task]] = {
    "accumulator": AccumulatorTask,
    "multistep_arithmetic": MultistepArithmeticTask,
}
FILE_TASKS: dict[str, Callable[..., Task]] = {
    "gsm8k": files.gsm8k,
    "math": files.math,
    "math500": files.math500,
    "bbh": files.bbh,
    "jsonl": files.jsonl,
    "hub": files.hub,
}
TASKS: tuple[str, ...] = (*BUILT_IN_TASKS, *FILE_TASKS)


def get_task(name: str, data: str | None = None, **options: Any) -> Task:
    """A task by name.

    Args:
        name: one of `TASKS`.
        data: file, folder or hub name for the tasks that read records; None for the built-in tasks, and to load a
            known set from the hub.
        options: fields of the task's class, or arguments of its function in `prmkit.tasks.files`.

    Raises:
        ConfigError: an unknown name or option, or `data` for a task that makes its own problems.
        DataError: `data` does not exist.
    """
    make = BUILT_IN_TASKS.get(name) or FILE_TASKS.get(name)
    if make is None:
        raise ConfigError("task.name", name, " | ".join(TASKS))
    accepted = [option for option in inspect.signature(make).parameters if option != "data"]
    for option, value in options.items():
        if option not in accepted:
            raise ConfigError(f"task.{option}", value, f"for {name}: {', '.join(accepted) or 'no options'}")
    if name in FILE_TASKS:
        return make(data, **options)
    if data is not None:
        raise ConfigError("task.data", data, f"None: {name} makes its own problems")
    return make(**options)
