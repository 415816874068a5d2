"""Recipes of a loop's versions: what has to be pulled before the commands can run."""

from dataclasses import replace

from prmkit.cli.loop import parse
from prmkit.cli.loop_run import Loop, _State
from prmkit.loop.plan import Begin


def recipe(run, state, **changes) -> list[tuple[str, ...]]:
    config = parse(["--config", "configs/loop/quick.yaml", "--run", str(run), "--registry", str(run / "registry")])
    loop = Loop(replace(config, **changes), None, print)
    return loop._recipe(state, [loop.plan.annotate(3, state.begin).argv])


def test_a_control_reads_the_first_version_and_the_one_before(tmp_path):
    one, two = tmp_path / "iteration-1", tmp_path / "iteration-2"
    begin = Begin(
        two / "policy/policy", first=tmp_path / "sft/policy", labelled=one / "policy/policy", prm=two / "prm/model"
    )
    state = _State(begin, "quick@2", {}, 2, first="quick@1")
    second = ("prm", "pairs", "pull", "quick@2", "run/iteration-2/pull/pair")
    first = ("prm", "pairs", "pull", "quick@1", "run/iteration-1/pull/pair")
    *before, annotate = recipe(tmp_path, state, labels_from="first")
    assert before == [second, first]
    assert annotate[annotate.index("--policy") + 1] == "run/iteration-1/pull/pair/policy"
    assert recipe(tmp_path, state)[:-1] == [second]
    assert recipe(tmp_path, replace(state, parent="quick@1", iteration=1), labels_from="first")[:-1] == [first]
    *before, annotate = recipe(tmp_path, state, labels_from="first", order="prm_first")
    assert [command[:3] for command in before] == [("prm", "pairs", "pull"), ("prm", "fit", "--config")]


def test_a_control_of_a_loop_that_began_with_a_version_reads_that(tmp_path):
    two = tmp_path / "iteration-2"
    begin = Begin(two / "policy/policy", first=tmp_path / "start/pair/policy", prm=two / "prm/model")
    begin = replace(begin, labelled=begin.first)
    state = _State(begin, "quick@5", {}, 2, first="quick@4", start="quick@3")
    begun = {"sft": None, "start": "quick@3", "order": "prm_first"}
    *before, annotate = recipe(tmp_path, state, labels_from="first", **begun)
    assert before == [
        ("prm", "pairs", "pull", "quick@5", "run/iteration-2/pull/pair"),
        ("prm", "pairs", "pull", "quick@3", "run/start/pair"),
    ]
    assert annotate[annotate.index("--policy") + 1] == "run/start/pair/policy"
    assert recipe(tmp_path, state, **begun)[:-1] == before[:1]
