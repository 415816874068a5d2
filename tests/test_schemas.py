"""Schemas: every constant is in docs/schemas.md, and every reader refuses another one with the file and the numbers."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from prmkit.errors import PrmkitError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("prmkit", "registry", "callbacks", "datamodules", "lightning_modules")


def constants():
    """Value by dotted name of all `*SCHEMA` constants."""
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(file.read_text()).body:
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                    found |= {f"{module}.{name}": node.value.value for name in names if name.endswith("SCHEMA")}
    return found


def page():
    text = (ROOT / "docs" / "schemas.md").read_text()
    return {name: (int(schema), reads) for schema, reads, name in re.findall(r"\| (\d+) \| (.+?) \| `(.+)` \|", text)}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def read_card(folder, schema):
    from prmkit.models.folders import read_card

    write(folder / "prmkit.json", {"schema": schema, "kind": "prm", "weight_version": 0})
    read_card(folder)


def read_step_format(folder, schema):
    from prmkit.steps import StepFormat, get_step_format

    write(folder / "step_format.json", {**get_step_format("plain").to_dict(), "schema": schema})
    StepFormat.load(folder)


def read_labels(folder, schema):
    from prmkit.annotation import load_records

    record = {"schema": schema, "problem_id": "a", "question": "q", "answer": "1", "steps": ["1"], "values": [1.0]}
    record |= {"rollouts": [8], "source": "s", "policy": "p"}
    list(load_records(write(folder / "labels.jsonl", record), "prmkit"))


def read_rows(folder, schema):
    from prmkit.search.rows import SearchRow, read_rows
    from prmkit.types import Usage

    row = SearchRow(problem_id="a", question="q", answer="1", traces=(), greedy=None, usage=Usage(), level=None,
                    source="t", error=None)  # fmt: skip
    list(read_rows(write(folder / "rows.jsonl", {**row.to_json(), "schema": schema})))


def read_output(folder, schema):
    from prmkit.chunks import ChunkedOutput

    with ChunkedOutput(folder / "out.jsonl", {}):
        pass
    meta = folder / "out.jsonl.meta.json"
    write(meta, {**json.loads(meta.read_text()), "schema": schema})
    with ChunkedOutput(folder / "out.jsonl", {}):
        pass


def read_checkpoint(folder, schema):
    from prmkit.checkpoints import read_sharded

    write(folder / "checkpoint.json", {"schema": schema, "format": "zero", "stage": 1, "processes": 1, "global_step": 1,
                                       "files": {}})  # fmt: skip
    read_sharded(folder)


def read_sealed(folder, schema):
    from registry.sealed import MANIFEST_SCHEMA, check_schema, seal, unseal

    path = folder / "manifest.json"
    path.write_bytes(seal({"schema": schema, "requires": "prmkit>=9"}))
    check_schema(unseal(path.read_bytes(), str(path)), MANIFEST_SCHEMA, str(path))


def read_metrics(folder, schema):
    from registry import read_metrics

    value = {"schema": schema, "dataset": "d", "figures": {}, "protocol": {}, "results": {}}
    read_metrics(write(folder / "metrics.json", value))


READERS = {
    "prmkit.models.folders._SCHEMA": read_card,
    "prmkit.steps.SCHEMA": read_step_format,
    "prmkit.annotation.records.RECORD_SCHEMA": read_labels,
    "prmkit.search.rows.ROW_SCHEMA": read_rows,
    "prmkit.chunks._SCHEMA": read_output,
    "prmkit.checkpoints.complete._SCHEMA": read_checkpoint,
    "registry.sealed.MANIFEST_SCHEMA": read_sealed,
    "registry.aliases._SCHEMA": read_sealed,
    "registry.metrics.METRICS_SCHEMA": read_metrics,
}
ELSEWHERE = {"registry.pull._SCHEMA"}  # tests/registry/test_registry_pull.py


def test_the_page_has_every_schema():
    assert {name: schema for name, (schema, _) in page().items()} == constants()


def test_every_schema_that_is_read_has_a_reader_here():
    read = {name for name, (_, reads) in page().items() if reads[0].isdigit()}
    assert read == set(READERS) | ELSEWHERE


@pytest.mark.parametrize("name", READERS)
def test_another_schema_is_refused_with_file_and_numbers(name, tmp_path):
    module, _, constant = name.rpartition(".")
    known = getattr(importlib.import_module(module), constant)
    readable = {int(number) for number in re.findall(r"\d+", page()[name][1])}
    for schema in (0, known + 1, 99):
        folder = tmp_path / f"schema-{schema}"
        folder.mkdir()
        with pytest.raises(PrmkitError) as caught:
            READERS[name](folder, schema)
        text = str(caught.value)
        assert str(tmp_path) in text
        assert re.search(rf"\b{schema}\b", text.replace(str(folder), ""))
        assert re.search(rf"\b{known}\b", text)
    assert known in readable
    (tmp_path / "known").mkdir()
    READERS[name](tmp_path / "known", known)
