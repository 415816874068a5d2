"""Numbered files of callbacks: a stranger's file of such a name is refused before training, their own is replaced."""

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from callbacks.rollout_samples import RolloutSamples
from callbacks.search_evaluation import SearchEvaluation
from prmkit.errors import ConfigError
from prmkit.io import write_json
from prmkit.records import Problem, Step, StepScores, Trace
from prmkit.rl.rollouts import Rollout

TRAINER = SimpleNamespace(loggers=[], global_step=4, strategy=None)
MINE = "my own work\n"


def samples(folder):
    return RolloutSamples(str(folder))


def searches(folder):
    return SearchEvaluation({"best_of_n": {}}, [1], every_n_epochs=1, dirpath=str(folder))


def write_samples(folder):
    trace = Trace("p1", (Step("a=1"), Step("b=2")), "stop", scores=StepScores((0.5, 0.25)))
    rollout = Rollout(Problem("p1", "q", "2"), 0, (1,), (2, 3), (0.0, 0.0), trace, None, {"outcome": 1.0})
    samples(folder)._write(TRAINER, [rollout], 7)


def write_searches(folder):
    write_json(folder / "step=4.json", {"step": 4, "epoch": 0, "figures": {}})
    Figure().savefig(folder / "step=4.png")


CASES = [(samples, write_samples, "iteration-00007", ("txt", "jsonl", "png")),
         (searches, write_searches, "step=4", ("json", "png"))]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "name"), [(make, f"{name}.{end}") for make, _, name, ends in CASES for end in ends],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_strangers_file_is_refused(tmp_path, make, name):
    (tmp_path / name).write_text(MINE)
    with pytest.raises(ConfigError, match=rf"dirpath: got '.*{name}'.*name another"):
        make(tmp_path).setup(TRAINER, SimpleNamespace(), "fit")
    assert (tmp_path / name).read_text() == MINE


@pytest.mark.parametrize(("make", "write", "name", "ends"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_own_files_and_other_names_are_none_of_it(tmp_path, make, write, name, ends):
    write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{end}" for end in ends}
    for end in ends:
        (tmp_path / f"{name}-notes.{end}").write_text(MINE)
    make(tmp_path).setup(TRAINER, SimpleNamespace(), "fit")
