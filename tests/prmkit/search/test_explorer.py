"""Growing, scoring and harvesting a tree."""

import asyncio
import random

import pytest

from prmkit.errors import ConfigError
from prmkit.records import Problem, SamplingParams, Step
from prmkit.scoring.table import TableScorer
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.explorer import Explorer, StepwiseParams
from prmkit.search.tree import Node, distinct, solution_steps

PROBLEM = Problem("p", "q", "1")


class Scorer(TableScorer):
    """A step's score is its length over 10; keeps what it was asked."""

    def __init__(self):
        super().__init__(lambda question, steps: len(steps[-1]) / 10)
        self.asked = []

    async def score(self, question, steps):
        self.asked.append(tuple(steps))
        return await super().score(question, steps)


def trace_of(tree, node):
    return asyncio.run(tree.harvest([node])).traces[0]


def explorer(engine, scorer=None, problem=PROBLEM, **params):
    return Explorer(problem, engine, scorer, StepwiseParams(**params), Budget())


def test_equal_samples_are_one_node_with_a_count(step_policy):
    tree = explorer(step_policy(lambda question, lines: {"a": 0.5, "bb": 0.5} if not lines else {}))
    (drawn,) = asyncio.run(tree.expand([(tree.root, 20)]))
    assert len(drawn) == 20
    children = distinct([drawn])
    assert tree.root.children == children
    assert {child.text for child in children} == {"a", "bb"}
    for child in children:
        assert child.count == drawn.count(child)
        assert child.tokens == child.count * (len(child.text) + 1)
        assert (child.depth, child.open, child.token_ids) == (1, True, tuple(tree_ids(tree, child.text + "\n")))
    assert sum(node.tokens for node in tree.nodes) == tree.budget.spent.generated_tokens


def tree_ids(tree, text):
    return tree._engine.format.encode_piece(text)


def test_ends(step_policy):
    """A bare end of sequence finishes what is there; one behind a line finishes with it; "c" and "c" + end differ."""

    def lines(question, written):
        return {(): {"c": 1.0, "c$": 1.0}, ("c",): {}}[written]

    tree = explorer(step_policy(lines), scorer := Scorer())
    (first,) = asyncio.run(tree.expand([(tree.root, 8)]))
    going, done = sorted(distinct([first]), key=lambda node: node.open, reverse=True)
    assert (going.text, going.finish, done.text, done.finish) == ("c", None, "c", "stop")
    ((bare, *others),) = asyncio.run(tree.expand([(going, 2)]))
    assert others == [bare]
    assert (bare.text, bare.finish, bare.count, bare.tokens) == ("", "stop", 2, 2)
    asyncio.run(tree.score([going, done, bare]))
    assert scorer.asked == [("c",)], "one text, one question to the PRM"
    assert [tree.value(node, "last") for node in (going, done, bare)] == pytest.approx([0.1] * 3)
    traces = [trace_of(tree, node) for node in (done, bare)]
    assert [trace.steps[0].token_ids[-1] for trace in traces] == [tree._engine.format.eos_id] * 2
    assert [(len(trace.steps), trace.n_tokens, trace.finish) for trace in traces] == [(1, 2, "stop"), (1, 3, "stop")]
    assert traces[0].scores.values == traces[1].scores.values == (0.1,)


def test_empty_completion(step_policy):
    tree = explorer(step_policy(lambda question, lines: {}), Scorer())
    ((end,),) = asyncio.run(tree.expand([(tree.root, 1)]))
    asyncio.run(tree.score([end]))
    trace = trace_of(tree, end)
    assert (trace.steps, trace.finish, trace.scores) == ((), "stop", None)
    assert tree.value(end, "last") == 0.0
    (other,) = asyncio.run(tree.roll_out([(tree.root, 3)]))
    assert [(node.text, node.finish, node.count) for node in distinct([other])] == [("", "stop", 3)]


def test_blank_lines_join_the_next_step(step_policy):
    engine = step_policy(lambda question, written: [{"a": 1.0}, {"": 1.0}, {"b$": 1.0}, {}][len(written)])
    tree = explorer(engine, Scorer())
    node = tree.root
    for _ in range(3):
        ((node,),) = asyncio.run(tree.expand([(node, 1)]))
        asyncio.run(tree.score([node]))
    trace = trace_of(tree, node)
    ids = (*engine.format.encode_piece("a\n\nb"), engine.format.eos_id)
    assert trace.steps == engine.format.split_ids(ids, (-1.0,) * len(ids))
    assert trace.scores.values == (0.1, 0.1)


@pytest.mark.parametrize("seed", range(20))
def test_steps_of_a_path_are_those_of_the_whole_completion(step_policy, seed):
    """Against `split_ids` on the joined ids, for random lines with blanks anywhere."""
    rng = random.Random(seed)
    format_ = step_policy(None).format
    pieces = [rng.choice(["", "a", "bc", " d "]) + "\n" for _ in range(rng.randint(0, 7))] + [rng.choice(["", "e"])]
    line, node = [], None
    for number, piece in enumerate(pieces):
        ids = tuple(format_.encode_piece(piece)) + ((format_.eos_id,) if number == len(pieces) - 1 else ())
        node = Node(node, "\n".join(format_.split_text(piece)), ids, (-0.5,) * len(ids))
        line.append(node)
    joined = tuple(token for node in line for token in node.token_ids)
    assert solution_steps(line) == format_.split_ids(joined, (-0.5,) * len(joined))


def test_endless_steps_and_traces_are_dead_ends(step_policy):
    endless = step_policy(lambda question, written: {"x" * 30: 1.0})
    tree = explorer(endless, step_tokens=10)
    ((node, _),) = asyncio.run(tree.expand([(tree.root, 2)]))
    assert (node.finish, node.tokens, node.count) == ("length", 20, 2)
    asyncio.run(explorer(endless, Scorer()).score([node]))
    assert node.score is None, "a dead end is not scored"

    for params, depth in (({"max_steps": 3}, 3), ({"sampling": SamplingParams(max_tokens=9)}, 5)):
        tree = explorer(step_policy(lambda question, written: {"a": 1.0}), **params)
        node = tree.root
        while node.open:
            ((node,),) = asyncio.run(tree.expand([(node, 1)]))
        assert (node.depth, node.finish, trace_of(tree, node).finish) == (depth, "length", "length")
        assert len(node.token_ids_so_far()) <= 9
        ((node,),) = asyncio.run(tree.roll_out([(tree.root, 1)]))
        assert (node.finish, node.depth) == ("length", depth)
        assert sum(node.tokens for node in tree.nodes) == tree.budget.spent.generated_tokens


def test_rounds_have_their_own_randomness(step_policy):
    def draw(problem=PROBLEM, seed=0):
        engine = step_policy(lambda question, written: dict.fromkeys("abcdefghij", 1.0))
        tree = explorer(engine, problem=problem, seed=seed)
        rounds = [asyncio.run(tree.expand([(tree.root, 6)]))[0] for _ in range(2)]
        twice = asyncio.run(tree.expand([(tree.root, 6), (tree.root, 6)]))
        return [[node.text for node in drawn] for drawn in (*rounds, *twice)]

    drawn = draw()
    assert len(set(map(tuple, drawn))) == 4
    assert draw() == drawn
    assert all(a != b for a, b in zip(draw(seed=1), drawn, strict=True))
    assert all(a != b for a, b in zip(draw(Problem("p2", "q", "1")), drawn, strict=True))


def test_scores_of_earlier_steps_come_with_the_last(step_policy):
    engine = step_policy(lambda question, written: [{"a": 1.0}, {"bb": 1.0}, {"ccc$": 1.0}, {}][len(written)])
    tree = explorer(engine, scorer := Scorer())
    ((end,),) = asyncio.run(tree.roll_out([(tree.root, 1)]))
    asyncio.run(tree.score([end, end]))
    assert [node.score for node in end.path()] == [None, 0.1, 0.2, 0.3]
    assert scorer.asked == [("a", "bb", "ccc")]
    assert tree.value(end, "product") == pytest.approx(0.006)
    assert [(node.text, node.action, node.finish) for node in tree.nodes[1:]] == [
        ("a", "rollout", None),
        ("bb", "rollout", None),
        ("ccc", "rollout", "stop"),
    ]


def test_result_marks_what_its_traces_go_through(step_policy):
    engine = step_policy(lambda question, written: {"a$": 1.0, "b$": 1.0, "c": 1.0} if not written else {})
    tree = explorer(engine)
    (drawn,) = asyncio.run(tree.expand([(tree.root, 30)]))
    a = next(node for node in drawn if node.text == "a")
    c = next(node for node in drawn if node.text == "c")
    result = asyncio.run(tree.harvest([c, a, a]))
    assert [(trace.steps[0].text, trace.finish) for trace in result.traces] == [
        ("a", "stop"),
        ("a", "stop"),
        ("c", "length"),
    ]
    assert {node.text: node.kept for node in result.nodes} == {"": True, "a": True, "b": False, "c": True}
    assert [node.parent for node in result.nodes] == [None, 0, 0, 0]
    assert asyncio.run(tree.harvest([])).traces[0].finish in ("stop", "length"), "the longest solution there is"
    unborn = explorer(engine)
    assert asyncio.run(unborn.harvest([unborn.root])).traces == ()


def test_parameters_are_checked(step_policy):
    for name in ("step_tokens", "max_steps"):
        with pytest.raises(ConfigError, match=rf"search\.{name}: got 0"):
            StepwiseParams(**{name: 0})
    with pytest.raises(ConfigError, match=r"search\.sampling\.stop: .* without the separator"):
        explorer(step_policy(None), sampling=SamplingParams(stop=("\n\n",)))
    tree = explorer(step_policy(lambda question, written: {"a$": 1.0}))
    (drawn,) = asyncio.run(tree.expand([(tree.root, 1)]))
    with pytest.raises(ConfigError, match="prm: got None"):
        asyncio.run(tree.score(drawn))


def test_the_users_stop_strings_end_a_trace(step_policy):
    engine = step_policy(lambda question, written: {"a=1.b": 1.0})
    tree = explorer(engine, sampling=SamplingParams(stop=("=1.",)))
    ((stepped,),) = asyncio.run(tree.expand([(tree.root, 1)]))
    ((whole,),) = asyncio.run(tree.roll_out([(tree.root, 1)]))
    assert [trace_of(tree, node).steps[0] for node in (stepped, whole)] == [
        Step("a=1.", tuple(engine.format.encode_piece("a=1.")), (-1.0,) * 4)
    ] * 2
    assert stepped.finish == whole.finish == "stop"


def test_tokens_are_kept_back_until_a_trace_is_finished(digit_policy):
    """Solutions of 10 tokens, 14 at most, steps of 2. Of 40 tokens 26 go into steps first, then one trace is completed
    with what is kept, and the rest goes into steps again; after a finished trace all goes into steps."""
    for first, rollouts in ((False, 1), (True, 0)):
        budget = Budget(BudgetLimits(generated_tokens=40))
        params = StepwiseParams(sampling=SamplingParams(max_tokens=14), step_tokens=2)
        tree = Explorer(PROBLEM, digit_policy, None, params, budget)
        if first:
            asyncio.run(tree.roll_out([(tree.root, 1)]))
        before = len(tree.nodes)
        (drawn,) = asyncio.run(tree.expand([(tree.root, 50)]))
        assert budget.spent.generated_tokens == 40
        assert len(drawn) == (40 - 10) // 2
        assert sum(node.finish == "stop" for node in tree.nodes[before:]) == rollouts
        assert asyncio.run(tree.harvest([])).traces[0].finish == "stop"
