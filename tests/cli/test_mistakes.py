"""Usual mistakes: one line, status 2, before anything heavy is imported; and the page of docs made from them."""

import importlib.util
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("mistakes", Path(__file__).with_name("mistakes.py"))
mistakes = sys.modules["mistakes"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mistakes)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    mistakes.make_workspace(folder)
    return folder


@pytest.fixture(scope="module")
def answers(workspace):
    return dict(zip(mistakes.MISTAKES, mistakes.answers_in(workspace), strict=True))


@pytest.mark.parametrize("mistake", mistakes.MISTAKES, ids=lambda mistake: mistake.command)
def test_a_mistake_is_one_line_and_status_2(answers, mistake):
    answer = answers[mistake]
    assert (answer.status, answer.output) == (2, ""), answer.errors
    assert answer.errors.startswith("error: ")
    assert answer.errors.count("\n") == 1, answer.errors
    assert len(answer.errors) < 700
    assert [word for word in mistake.words if word not in answer.errors] == [], answer.errors


def test_nothing_was_written(answers, workspace):
    names = {"bad.json", "bad.yaml", "file.txt", "folder", "labels.jsonl", "policy", "prm", "registry", "twice.yaml"}
    assert {path.name for path in workspace.iterdir()} - {"hub"} == names
    assert not any((workspace / "folder").iterdir())


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse has other words for some mistakes")
def test_the_page_is_current(answers):
    assert mistakes.PAGE.read_text(encoding="utf-8") == mistakes.page(list(answers.values())), (
        "python tests/cli/mistakes.py writes it"
    )
