"""Fixtures of the data module tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prmkit.formats.bound import BoundStepFormat
from prmkit.tasks import get_task


@pytest.fixture(scope="session")
def bound() -> BoundStepFormat:
    """The accumulator task's step format: one token a character, steps end in a newline, label tokens + and -."""
    task: Any = get_task("accumulator")
    return BoundStepFormat(task.step_format, task.tokenizer())


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., str]:
    def write(rows: list[Any], name: str = "rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write
