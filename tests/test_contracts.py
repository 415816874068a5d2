"""The import contracts speak of every module of the core."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_contracts_name_every_module_of_the_core():
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    files = [path.stem for path in (ROOT / "prmkit").glob("*.py") if not path.stem.startswith("__")]
    rooms = [path.parent.name for path in (ROOT / "prmkit").glob("*/__init__.py")]
    modules = {f"prmkit.{name}" for name in (*files, *rooms)} - {"prmkit.cli"}
    layers, core, _ = linter["contracts"]
    assert set(layers["layers"][-1].split(" : ")) == modules - {"prmkit.loop"}
    assert set(core["source_modules"]) == modules | {"registry"}
