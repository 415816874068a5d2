"""`prm annotate --judge` from arguments to a file of verdicts, and to the labels that are kept."""

import json

import pytest

from prmkit.annotation import StepLabels, load_records
from prmkit.cli import main
from prmkit.io import read_jsonl
from prmkit.tasks import get_task


@pytest.fixture
def labels(tmp_path):
    """Three solutions of a problem; the last two are one solution with two labels."""
    problem = get_task("accumulator").problem("train", 0)
    steps = tuple(problem.solution.split("\n"))
    n = len(steps)

    def record(values):
        return StepLabels(
            problem.id, problem.question, problem.answer, steps, values, (8,) * n, "s", "p", separator="\n"
        )

    records = [record((1.0,) * n), record((0.0,) * n), record((1.0,) * n)]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(r.to_json()) + "\n" for r in records))
    return path


def test_a_prm_judges_every_solution_once_and_the_filter_keeps_what_it_agrees_with(labels, memorised_prm, capsys):
    arguments = ["annotate", "--judge", str(labels), "--prm", str(memorised_prm), "--engine.device", "cpu"]
    assert main([*arguments, "--threshold", "0.0"]) == 0  # no score is 0: the judge finds nothing wrong
    verdicts = labels.with_name("steps.jsonl.verdicts")
    before = verdicts.read_bytes()
    (verdict,) = read_jsonl(verdicts)
    assert verdict["first_error"] == -1
    assert "1 solutions judged, 0 without a usable answer, 0 failed" in capsys.readouterr().out
    assert main([*arguments, "--threshold", "0.0"]) == 0
    assert verdicts.read_bytes() == before
    clean = labels.with_name("clean.jsonl")
    convert = ["annotate", "--convert", str(labels), "--to", "prmkit", "--output", str(clean)]
    assert main([*convert, "--curation.verdicts", str(verdicts)]) == 0
    assert [record.values[0] for record in load_records(clean)] == [1.0, 1.0]


def test_a_policy_that_cannot_judge_is_counted_as_unparsable(labels, memorised_policy, capsys):
    arguments = ["annotate", "--judge", str(labels), "--policy", str(memorised_policy), "--engine.device", "cpu"]
    # The tiny policy's tokenizer knows no prose: the request is put in the task's own letters.
    prompt = ["--prompt.template", "{question},{steps}", "--prompt.step", "{i}{step}", "--prompt.answer", "f"]
    assert main([*arguments, *prompt, "--sampling.max_tokens", "4"]) == 0
    assert "1 solutions judged, 1 without a usable answer, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "prm: got None; accepted: a PRM, or null together with --policy"),
        (["--prm", "a", "--policy", "b"], "prm: got 'a'"),
        (["--prm", "nowhere"], "--prm nowhere: nowhere: no such model folder"),
    ],
)
def test_mistakes_end_in_one_line(labels, capsys, extra, message):
    assert main(["annotate", "--judge", str(labels), *extra]) == 2
    assert message in capsys.readouterr().err


def test_help(capsys):
    assert main(["annotate", "--judge", "--help"]) == 0
    assert "prm annotate --judge steps.jsonl --prm" in capsys.readouterr().out
