"""Right answers that were not worked out."""

import pytest

from prmkit.rewards import GroupCounts, Reward
from prmkit.rollouts import Rollout, group_outcomes, lucky_sums
from prmkit.tasks import get_task
from prmkit.tasks.luck import is_worked_out
from prmkit.types import Problem, Step, Trace

TASK = get_task("accumulator")
RIGHT = ("f+5=C", "g*3=4", "h-8=C")
PROBLEM = Problem("p", "f+5g*3h-8,7", "C", "\n".join(RIGHT))


@pytest.mark.parametrize(
    ("steps", "worked_out"),
    [
        (RIGHT, True),
        (("f+5=D", "g*3=4", "h-8=C"), False),
        (("f+5=C",), False),  # every line is right, and its value the answer by chance
        ((), False),
        ((*RIGHT, "i+3=F"), False),
    ],
)
def test_every_step_must_be_there_and_right(steps, worked_out):
    assert is_worked_out(TASK, PROBLEM, steps) is worked_out


def test_every_exact_solution_is_worked_out_and_no_shorter_one_is():
    for name in ("accumulator", "multistep_arithmetic"):
        task = get_task(name)
        for problem in task.problems("validation", 20):
            lines = problem.solution.splitlines()
            assert is_worked_out(task, problem, lines)
            assert not is_worked_out(task, problem, lines[:-1])


def rollout(group: int, outcome: float | None, steps: tuple[str, ...]) -> Rollout:
    made = tuple(Step(text, (1,)) for text in steps)
    trace = Trace("p", made, "stop")
    return Rollout(PROBLEM, group, (1,), (1,), (0.0,), trace, Reward(), {"outcome": outcome})


def test_luck_is_counted_among_right_answers_and_groups_among_judged_ones():
    wrong, lucky, right, unknown = (
        rollout(0, outcome, steps) for outcome, steps in ((-1.0, RIGHT), (2.0, RIGHT[:1]), (2.0, RIGHT), (None, RIGHT))
    )
    assert lucky_sums([wrong, lucky, right, unknown], 2.0, TASK) == (1.0, 2)
    groups = [(wrong, wrong), (right, lucky), (wrong, right), (unknown, unknown), (unknown, wrong)]
    assert group_outcomes(groups, 2.0) == GroupCounts(judged=4, all_wrong=2, all_right=1)
