"""`import prmkit`: names, the examples of docs/python.md, and what the functions promise."""

import ast
import asyncio
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import prmkit
from prmkit.engines.scripted import ScriptedEngine
from prmkit.tasks.vocabulary import character_tokenizer

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.M | re.S)
HERE = [block for block in BLOCKS if "gpu-1" not in block]  # the others need a server and a download
BOUND = prmkit.BoundStepFormat(prmkit.get_step_format("plain"), character_tokenizer("q0123456789=+-\n"))


def engine(*lines: str) -> ScriptedEngine:
    """Sample i writes line i, again and again."""
    return ScriptedEngine(BOUND, lambda prefix, index, seed: lines[index % len(lines)])


class Scores:
    """A scorer by the last step."""

    def __init__(self, **values: float):
        self.values = {key.strip("_"): value for key, value in values.items()}

    async def score(self, question, steps):
        return prmkit.StepScores(tuple(self.values[step[-1]] for step in steps))


def test_every_block_of_the_page(tmp_path, memorised_policy, memorised_prm, monkeypatch):
    shutil.copytree(memorised_policy, tmp_path / "runs/demo/sft/policy")
    shutil.copytree(memorised_prm, tmp_path / "runs/demo/prm/model")
    (tmp_path / "runs/python").mkdir()
    script = tmp_path / "page.py"
    script.write_text("".join(HERE))
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    answer, confidence = done.stdout.split("\n")[0].split()
    assert 0 < float(confidence) <= 1, answer
    assert (tmp_path / "runs/python/prm/step_format.json").is_file()


def test_names_come_without_torch_and_are_all_there():
    code = "import sys, prmkit; prmkit.Problem, prmkit.register_reward, prmkit.solve; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
    stub = ast.parse((ROOT / "prmkit" / "__init__.pyi").read_text())
    named = [alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert set(named) <= set(dir(prmkit))
    assert all(getattr(prmkit, name) is not None for name in named)
    with pytest.raises(AttributeError, match="has no attribute 'solved'"):
        _ = prmkit.solved


def test_the_answer_and_its_share_of_the_vote():
    writer = engine("1+1=2", "1+1=3", "1+1=3", "+")  # the last has no answer
    plain = prmkit.solve("q", writer, n=4)
    assert (plain.answer, plain.confidence) == ("3", pytest.approx(2 / 4))
    scored = prmkit.solve("q", writer, Scores(_2=0.9, _3=0.1, **{"+": 0.5}), n=4)
    assert scored.answer == "2"
    assert scored.confidence == pytest.approx(0.9 / 1.1 * 3 / 4)
    assert [trace.scores.values for trace in scored.traces[:2]] == [(0.9,), (0.1,)]
    assert scored.usage.samples == 4
    by_min = prmkit.solve("q", writer, Scores(_2=0.2, _3=0.15, **{"+": 0.5}), n=4, select="min_vote")
    assert (by_min.answer, by_min.confidence) == ("3", pytest.approx(0.3 / 0.5 * 3 / 4))
    nothing = prmkit.solve("q", engine("+"), n=2)
    assert (nothing.answer, nothing.confidence) == (None, 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "beem_search"}, "Did you mean `beam_search`"),
        ({"method": "beam_search"}, "prm: got None; accepted: a PRM: beam_search is guided by one"),
        ({"method": "cot", "n": 4}, "n: got 4; accepted: None: cot has one size"),
        ({"select": "min_vote"}, "select: got 'min_vote'; accepted: majority"),
        ({"widht": 4}, "search.widht: got 4"),
        ({"task": "acumulator"}, "Did you mean `accumulator`"),
    ],
)
def test_mistakes_name_the_argument(arguments, said):
    with pytest.raises(prmkit.ConfigError, match=re.escape(said)):
        prmkit.solve("q", engine("1+1=2"), **arguments)


def test_it_works_where_an_event_loop_runs():
    async def cell():
        return prmkit.solve("q", engine("1+1=2"), n=1).answer

    assert asyncio.run(cell()) == "2"


def test_a_model_given_as_a_path_is_loaded_once_until_it_changes(memorised_policy, tmp_path):
    from prmkit import api

    folder = tmp_path / "policy"
    shutil.copytree(memorised_policy, folder)
    first, _ = api._models(folder, None)
    assert api._models(str(folder), None)[0] is first
    (folder / "generation_config.json").write_text((folder / "generation_config.json").read_text() + "\n")
    assert api._models(folder, None)[0] is not first


def test_models_that_mean_another_step_are_refused(memorised_prm):
    words = prmkit.StepFormat("words", prmkit.PolicyFormat(separator="+"))
    other = ScriptedEngine(prmkit.BoundStepFormat(words, BOUND.tokenizer), {})
    with pytest.raises(prmkit.StepFormatError, match="policy and PRM do not fit"):
        prmkit.solve("q", other, memorised_prm, n=1)


def test_labels_and_rows_of_a_task(memorised_policy):
    rows = prmkit.search_task("accumulator", memorised_policy, n=2, limit=3)
    assert [len(row.traces) for row in rows] == [2, 2, 2]
    records = prmkit.annotate("accumulator", memorised_policy, method="mips", limit=2, rollouts=1)
    assert {record.source for record in records} == {"mips"}
