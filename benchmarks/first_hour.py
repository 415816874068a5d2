"""What a first hour shows: documentation that runs, mistakes that are answered, settings that are taken as typed.

Writes benchmarks/results/first_hour.json: commands of README and docs and how many of them fail, usual mistakes and the
share answered in one line with status 2, seconds to a mistake in a config of `prm fit` (against importing torch in the
same run), and overrides whose value is not the one that was typed.

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

from prmkit.io import write_json

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "first_hour.json"


def load(name: str, file: str) -> ModuleType:
    """A module of the tests, whose tables are measured here."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tests" / file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def documents() -> dict[str, Any]:
    """Run the tests of README's and the docs' blocks; a failing test counts with all its block's commands."""
    pages = load("doc_commands", "docs/test_doc_commands.py")
    counts = {
        f"{block.page}:{block.line}": len(pages.commands(block))
        for block in pages.BLOCKS
        if block.language in pages.SHELLS
    }
    tests = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--tb=no",
        "-rf",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "docs"),
    ]
    ended = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True, check=False)
    failed = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    lost = sum(counts.get(line.partition("[")[2].partition("]")[0], 1) for line in failed)
    return {
        "doc_blocks": len(pages.BLOCKS),
        "doc_commands_run": sum(counts.values()),
        "doc_commands_failed": lost,
        "doc_tests": ended.stdout.strip().splitlines()[-1],
    }


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
    """Type `null` for every optional key of every shipped config of a fit; count the values that differ."""
    rules = load("settings_rules", "cli/test_settings_rules.py")
    tried = silent = 0
    for name in rules.FIT_CONFIGS:
        top, _ = rules._signatures()
        tree = rules.load_config(rules.shipped(name))
        for part in ("trainer", "model", "data"):
            for key in rules.optional_keys(top.settings[part].kind, part, tree[part]):
                tried += 1
                typed = rules.fit("--config", str(rules.shipped(name)), f"--{key}", "null")
                silent += rules.enter(typed, key) is not None
    return {"overrides_tried": tried, "silent_overrides": silent}


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
    result = {
        "schema": 1,
        "command": "python benchmarks/first_hour.py",
        **documents(),
        **mistakes(),
        **overrides(),
        "seconds_to_config_error_fit": wall,
        "cpu_seconds_to_config_error_fit": busy,
        "seconds_to_import_torch_lightning_transformers": torch_wall,
        "cpu_seconds_to_import_torch_lightning_transformers": torch_busy,
    }
    write_json(RESULT, result)
    for name, value in result.items():
        print(f"{name:52} {value}")


if __name__ == "__main__":
    main()
