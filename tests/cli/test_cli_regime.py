"""`prm regime` from arguments to a verdict, with a real (tiny) policy that serves as its own untrained PRM."""

import json
import subprocess
import sys

import pytest

from prmkit.cli import main
from prmkit.cli.fit_settings import read_fit
from prmkit.cli.options import ProblemSource
from prmkit.cli.parsing import expand_configs
from prmkit.cli.regime_command import LookedAt, training_command
from prmkit.evaluation.regime_verdict import CONSTANT_WEIGHT, FADING_WEIGHT, Verdict
from prmkit.tasks import get_task

OPTIONS = [
    *("--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "8"),
    *("--split", "test", "--group", "4", "--sampling.max_tokens", "24", "--engine.device", "cpu"),
]


@pytest.fixture
def regime(memorised_policy, capsys):
    def run(*extra: str) -> dict:
        assert main(["regime", "--policy", str(memorised_policy), *OPTIONS, *extra, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_figures_are_those_of_a_search_with_the_same_seed_and_do_not_depend_on_batches(
    regime, memorised_policy, tmp_path
):
    found = regime("--seed", "3")
    assert found == regime("--seed", "3", "--in_flight", "2")
    assert found["figures"] != regime("--seed", "4")["figures"]
    where = ["--output", str(tmp_path / "out"), "--n", "4", "--greedy", "false", "--seed", "3"]
    search = [*OPTIONS[:8], *OPTIONS[10:]]
    assert main(["search", "--policy", str(memorised_policy), *search, *where]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").open()]
    right = [sum(trace["correct"] for trace in row["traces"]) for row in rows]
    assert found["figures"]["pass_at_1"]["mean"] == sum(right) / 32
    assert found["figures"]["all_right"] == sum(count == 4 for count in right) / 8


def test_prms_are_judged_and_compared(regime, memorised_prm, as_prm, memorised_policy, capsys):
    other = as_prm(memorised_policy)
    found = regime("--prm", str(memorised_prm), "--prm", str(other), "--thresholds.dense", "0.95")
    prms = found["figures"]["prms"]
    assert list(prms) == [str(memorised_prm), str(other)]
    assert prms[str(memorised_prm)] == prms[str(other)]
    assert 0.0 <= prms[str(other)]["auroc"] <= 1.0
    assert found["figures"]["disagreement"] == 0.0
    assert found["verdict"]["regime"] == "sparse"


def test_the_report_ends_with_the_command_to_type(memorised_policy, memorised_prm, capsys):
    assert main(["regime", "--policy", str(memorised_policy), "--prm", str(memorised_prm), *OPTIONS]) == 0
    shown = capsys.readouterr()
    for text in ("pass@1", "chance 0.062", "groups without an outcome signal", "AUROC of", "result  dense: outcome"):
        assert text in shown.out
    assert "next    prm fit --config configs/grpo/accumulator.yaml --model.source.path" in shown.out
    assert "samples: 8/8" in shown.err


VERDICTS = {
    "unreadable": ("nothing", None), "weak": ("nothing", None), "dense": ("outcome", None),
    "sparse": ("outcome_and_prm", FADING_WEIGHT), "absent": ("outcome_and_prm", CONSTANT_WEIGHT),
}  # fmt: skip


@pytest.mark.parametrize("regime_name", VERDICTS)
@pytest.mark.parametrize(
    ("task", "split", "options"),
    [
        ("accumulator", "validation", {}),
        ("accumulator", "hard", {"hard_max_ops": 9}),
        ("multistep_arithmetic", "test", {}),
        ("jsonl", "mine", {"grader": "exact"}),
    ],
)
def test_every_following_command_is_one_that_prm_fit_takes(task, split, options, regime_name, tmp_path):
    reward, weight = VERDICTS[regime_name]
    (tmp_path / "mine.jsonl").write_text('{"question": "q", "answer": "1"}\n')
    data = str(tmp_path / "mine.jsonl") if task == "jsonl" else None
    what = LookedAt(
        "P", ("M", "N"), ProblemSource(task, data, split, task_options=options), get_task(task, data, **options), 99
    )
    words = training_command(Verdict(regime_name, reward, weight, ()), what)
    assert words[:2] == ["prm", "fit"]
    for name in ("P", "M", "N"):
        (tmp_path / name).mkdir()
    tree = read_fit(expand_configs(words[2:])[0], "fit").tree
    if reward == "nothing":
        return
    data_of, model = tree["data"]["init_args"], tree["model"]["init_args"]
    prompts = data_of["prompts"]
    assert (prompts["task"], prompts["data"] if data else None) == (task, data)
    assert prompts["split"] == ("mine" if task == "jsonl" else "train")
    assert options.items() <= prompts.get("task_options", {}).items()
    assert (prompts.get("task_options", {}).get("hard_share") == 1.0) is (split == "hard")
    assert model["kl"]["weight"] == 0.1
    if weight is not None:
        assert data_of["prm"]["path"] == ["M", "N"]
        assert model["process_weight"] == (0.5 if regime_name == "absent" else {"follow": "unsolved", "start": 0.8})
    else:
        assert (tree["data"]["init_args"]["rewards"].get("process"), tree["data"]["init_args"].get("prm")) == (
            None,
            None,
        )


def test_the_loop_follows_where_there_is_nothing_to_reward():
    what = LookedAt("P", (), ProblemSource("accumulator", None, "test"), get_task("accumulator"), 99)
    words = training_command(Verdict("absent", "prm_or_curriculum", None, ()), what)
    assert words[:4] == ["prm", "loop", "--config", "configs/loop/easy_to_hard.yaml"]
    assert "HARDER" in training_command(Verdict("solved", "nothing", None, ()), what)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "`policy`: not given"),
        (["--policy", "nowhere"], "--policy nowhere: nowhere: no such model folder"),
        (["--policy", "POLICY", "--prm", "POLICY"], "--prm"),
        (["--policy", "POLICY", "--group", "1"], "group: got 1; accepted: an integer of at least 2"),
        (["--policy", "POLICY", "--chance", "1"], "chance: got 1.0"),
        (["--policy", "POLICY", "--sampling.temperature", "0"], "sampling.temperature: got 0.0"),
        (["--policy", "POLICY", "--thresholds.dense", "0.001"], "thresholds.dense: got 0.001"),
        (["--policy", "POLICY", "--task", "acumulator"], "task: got 'acumulator'"),
        (["--policy", "POLICY", "--limit", "null"], "limit: got None"),
        (["--policy", "POLICY", "--prm", "a", "--prm", "b", "--prm_endpoint", "http://x"], "prm: got 'a,b'"),
    ],
)
def test_mistakes_are_answered_before_torch_is_imported(options, said, memorised_policy):
    argv = ["regime", *(str(memorised_policy) if word == "POLICY" else word for word in options)]
    code = f"import sys; from prmkit.cli import main; s = main({argv!r}); print(s, 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout.strip(), ended.stderr.count("\n")) == ("2 False", 1)
    assert said in ended.stderr
