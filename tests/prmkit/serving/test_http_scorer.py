"""The scorer over HTTP against real servers on loopback."""

import asyncio

import pytest

from prmkit.engines.remote.http import HTTPEngine
from prmkit.errors import ConfigError, EngineLostError
from prmkit.formats.bound import EncodedSteps
from prmkit.formats.spec import PRMFormat
from prmkit.protocols import StepScorer
from prmkit.scoring.config import HttpScorerConfig
from prmkit.scoring.http import HTTPScorer, read_scores
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
FORMATS = [
    PRMFormat(),
    PRMFormat(read="before_tag", tag="+", after_step="\n"),
    PRMFormat(head="label_tokens", tag="", after_step="\n", read="step_end"),
]


def traces():
    problems = TASK.problems("train", 6)
    return [(p.question, TASK.demonstration(p, i).split("\n")[: 1 + i]) for i, p in enumerate(problems)] + [("a+1", [])]


def run(scorer, asked):
    async def main():
        return [scores.values for scores in await asyncio.gather(*(scorer.score(*trace) for trace in asked))]

    return asyncio.run(main())


def near(found, expected):
    same_shape = [len(values) for values in found] == [len(values) for values in expected]
    return same_shape and sum(found, ()) == pytest.approx(sum(expected, ()), abs=1e-6)


@pytest.fixture
def connect():
    opened = []

    def make(server, fmt, **options):
        config = HttpScorerConfig([server.url], **{"backoff": 0.01, "retries": 3, "patience": 5.0, **options})
        opened.append(HTTPScorer(config, fmt))
        return opened[-1]

    yield make
    for scorer in opened:
        scorer.close()


@pytest.mark.parametrize("fields", FORMATS, ids=["tag", "before_tag", "step_end"])
@pytest.mark.parametrize("everything", [False, True], ids=["positions", "all tokens"])
def test_scores_are_those_of_the_scorer_in_process(fields, everything, make_scorer, prm_server, connect, faults):
    ours = make_scorer(prm=fields)
    server = prm_server(make_scorer(prm=fields))
    scorer = connect(server, ours.format)
    if everything:  # as a server gives them that knows nothing of positions
        object.__setattr__(scorer.served, "read_positions", False)
    assert isinstance(scorer, StepScorer)
    expected = run(ours, traces())
    assert near(run(scorer, traces()), expected)
    assert [len(values) for values in expected] == [len(steps) for _, steps in traces()]
    assert ("positions" in server.bodies[-1]) is not everything
    assert scorer.stats.requests == len(traces()) - 1
    server.faults += [faults["drop"], faults["status"](500)]
    assert near(run(scorer, traces()), expected)


def test_what_are_not_scores_is_refused(make_scorer, prm_server, connect, faults):
    ours = make_scorer(prm=PRMFormat())
    server = prm_server(ours)
    server.always = faults["change"](lambda reply: reply["data"][0].update(data=[[-3.0, 2.0]] * 2))
    with pytest.raises(EngineLostError, match=r"expected probabilities, got \[-3.0, 2.0\].*use_activation"):
        connect(server, ours.format)
    server.always = None
    with pytest.raises(ConfigError, match="at most 128 tokens, the server's context"):
        run(connect(server, ours.format), [("1+1", ["1"] * 200)])


def test_reading_rows_by_hand():
    encoded = EncodedSteps((5, 6, 7, 8), (1, 3))

    def read(rows, column=1):
        return read_scores(encoded, {"data": [{"data": rows}]}, column, "http://x").values

    assert read([[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]) == (0.25, 1.0)
    assert read([[0.75, 0.25], [0.0, 1.0]]) == (0.25, 1.0), "rows of the step tag alone"
    assert read([[0.75, 0.25], [0.0, 1.0]], column=0) == (0.75, 0.0)
    assert read([[0.1], [0.2], [0.3], [0.4]]) == read([0.1, 0.2, 0.3, 0.4]) == (0.2, 0.4)
    for rows, message in (
        ([[0.5, 0.5]] * 3, "4 tokens or of 2 steps, got 3"),
        ([[0.5, 0.6]] * 2, "expected probabilities"),
        ([[0.2, 0.3, 0.5]] * 2, "one or two probabilities"),
        ([[float("nan")]] * 2, "one or two probabilities"),
    ):
        with pytest.raises(EngineLostError, match=message):
            read(rows)


def test_a_policy_server_is_no_prm_server_and_the_other_way_round(
    make_scorer, prm_server, policy_server, connect, bound
):
    ours = make_scorer(prm=PRMFormat())
    with pytest.raises(EngineLostError, match=r"/pooling: status 404.*a small input is refused"):
        connect(policy_server(), ours.format)
    from prmkit.engines.config import HttpEngineConfig

    with pytest.raises(EngineLostError, match="/v1/completions: status 404"):
        HTTPEngine(HttpEngineConfig([prm_server(ours).url]), bound)
