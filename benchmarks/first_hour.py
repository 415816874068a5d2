"""What a first hour shows: documentation that runs, mistakes that are answered, settings that are taken as typed.

Writes benchmarks/results/first_hour.json: commands of README and docs that were run, smaller, and how many of them
fail (the others are parsed by the tests of tests/docs); usual mistakes and the share answered in one line with status
2; seconds to a mistake in a config of `prm fit` (against importing torch in the same run); and overrides whose value
in the config is not the one that was typed: null for every optional key, another value for every number, truth value
and text, of every shipped config of a fit.

    python benchmarks/first_hour.py
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from _doc_commands import run_commands
from _environment import write_result

from prmkit.errors import PrmkitError

ROOT = Path(__file__).resolve().parents[1]


def load(name: str, file: str) -> ModuleType:
    """A module of the tests, whose tables are measured here."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents() -> dict[str, Any]:
    """Run the commands of README and docs that can be run here."""
    pages = load("doc_commands", "docs/test_doc_commands.py")
    with tempfile.TemporaryDirectory() as name:
        return run_commands(pages, Path(name))


def mistakes() -> dict[str, Any]:
    """Answer every mistake of the table."""
    table = load("mistakes", "cli/mistakes.py")
    with tempfile.TemporaryDirectory() as name:
        table.make_workspace(Path(name))
        answers = table.answers_in(Path(name))
    clear = [
        answer.status == 2 and answer.errors.startswith("error: ") and answer.errors.count("\n") == 1
        and all(word in answer.errors for word in mistake.words)
        for mistake, answer in zip(table.MISTAKES, answers, strict=True)
    ]  # fmt: skip
    light = sum(mistake.light for mistake in table.MISTAKES)
    return {
        "mistakes_tried": len(clear),
        "mistakes_one_clear_line": round(sum(clear) / len(clear), 4),
        "mistakes_answered_without_torch": light,
    }


def overrides() -> dict[str, Any]:
    """Type one value at a time over every shipped config of a fit; count the values that are not in the config then."""
    rules = load("settings_rules", "cli/test_settings_rules.py")
    tried = refused = silent = 0
    for name in rules.FIT_CONFIGS:
        file = rules.shipped(name)
        top, _ = rules._signatures()
        tree = rules.load_config(file)
        typed: list[tuple[str, str, Any]] = []
        for part in ("trainer", "model", "data"):
            typed += [(key, "null", None) for key in rules.optional_keys(top.settings[part].kind, part, tree[part])]
            typed += _others(part, tree[part])
        for key, text, value in typed:
            tried += 1
            try:
                found = rules.enter(rules.fit("--config", str(file), f"--{key}={text}"), key)
            except PrmkitError:
                refused += 1
            else:
                silent += found != value or type(found) is not type(value)
    return {"overrides_tried": tried, "overrides_refused": refused, "silent_overrides": silent}


def _others(key: str, node: Any) -> list[tuple[str, str, Any]]:
    """(key, text, value) for every number, truth value and text below a key: another one of its type."""
    if isinstance(node, dict):
        items = ((name, value) for name, value in node.items() if name != "class_path")
        return [found for name, value in items for found in _others(f"{key}.{name}", value)]
    if isinstance(node, list):
        return [found for index, value in enumerate(node) for found in _others(f"{key}.{index}", value)]
    if isinstance(node, bool):
        return [(key, str(not node).lower(), not node)]
    if isinstance(node, int):
        return [(key, str(node + 1), node + 1)]
    if isinstance(node, float):
        return [(key, repr(node / 2), node / 2)]
    if isinstance(node, str) and not node.startswith("${"):
        return [(key, f"{node}_1e3", f"{node}_1e3")]
    return []


def seconds(arguments: list[str], repeats: int) -> tuple[float, float]:
    """Median wall-clock and processor seconds of a process."""
    walls, busy = [], []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(arguments, capture_output=True, check=False)
        walls.append(time.perf_counter() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(statistics.median(walls), 3), round(statistics.median(busy), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="processes timed, of each kind (default: %(default)s)")
    repeats = parser.parse_args().repeats
    fit = [str(Path(sys.executable).with_name("prm")), "fit", "--config", "configs/prm/accumulator.yaml"]
    wall, busy = seconds([*fit, "--model.optimizer.lr", "fast"], repeats)
    torch_wall, torch_busy = seconds([sys.executable, "-c", "import torch, lightning.pytorch, transformers"], repeats)
    figures = {
        **documents(),
        **mistakes(),
        **overrides(),
        "seconds_to_config_error_fit": wall,
    }
    protocol = {
        "command": "python benchmarks/first_hour.py",
        "repeats": repeats,
        "cpu_seconds_to_config_error_fit": busy,
        "seconds_to_import_torch_lightning_transformers": torch_wall,
        "cpu_seconds_to_import_torch_lightning_transformers": torch_busy,
    }
    packages = ("prmkit", "torch", "lightning", "transformers", "jsonargparse")
    print(write_result("first_hour", figures, packages, protocol=protocol))
    for name, value in {**figures, **protocol}.items():
        print(f"{name:52} {value}")


if __name__ == "__main__":
    main()
