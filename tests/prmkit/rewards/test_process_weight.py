"""The weight of process rewards over a fit: schedules, rules that follow groups, and their state."""

import pytest

from prmkit.errors import ConfigError
from prmkit.rewards import ChangingWeight, GroupCounts, ProcessWeight, count_groups

NONE = GroupCounts()


def test_groups_are_counted_by_what_their_solutions_have_in_common():
    groups = [[False, False], [True, True], [True], [], [False, True], [False]]
    assert count_groups(groups) == GroupCounts(judged=5, all_wrong=2, all_right=2)
    assert GroupCounts(1, 1, 0) + GroupCounts(2, 0, 1) == GroupCounts(3, 1, 1)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        (0.3, [0.3] * 6),
        (ProcessWeight("linear", 0.8, 0.2, 3), [0.8, 0.6, 0.4, 0.2, 0.2, 0.2]),
        (ProcessWeight("linear", 0.0, 1.0, 2), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
        (ProcessWeight("drop", 0.5, updates=4), [0.5] * 4 + [0.0] * 2),
    ],
)
def test_a_schedule_over_updates(setting, wanted):
    weight = ChangingWeight(setting)
    found = []
    for update in range(6):
        weight.begin(update, NONE)
        found.append(weight.now)
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("follow", "smoothing", "wanted"),
    [
        ("silent", 0.0, [0.2 + 0.6 * x for x in (0.75, 0.5, 0.5, 1.0)]),
        ("unsolved", 0.0, [0.2 + 0.6 * x for x in (0.75, 0.25, 0.25, 0.0)]),
        ("silent", 0.5, [0.2 + 0.6 * x for x in (0.75, 0.625, 0.625, 0.8125)]),
    ],
)
def test_a_rule_follows_the_groups(follow, smoothing, wanted):
    """Of four groups without a signal: three unsolved; one and one solved; none judged; all solved."""
    weight = ChangingWeight(ProcessWeight(follow, 0.8, 0.2, smoothing=smoothing))
    assert weight.now == 0.8
    found = []
    for counts in (GroupCounts(4, 3, 0), GroupCounts(4, 1, 1), NONE, GroupCounts(4, 0, 4)):
        weight.begin(0, counts)
        found.append(weight.now)
    assert found == pytest.approx(wanted)


def test_state_continues_and_a_number_in_the_config_counts():
    rule = ProcessWeight("silent")
    first, second, number = ChangingWeight(rule), ChangingWeight(rule), ChangingWeight(0.25)
    another = ChangingWeight(ProcessWeight("unsolved"))
    first.begin(0, GroupCounts(8, 3, 0))
    for other in (second, number, another):
        other.load_state_dict(first.state_dict())
    assert (second.now, number.now, another.now) == (first.now, 0.25, first.now)
    assert another.share is None
    for weight in (first, second):
        weight.begin(1, GroupCounts(8, 7, 0))
    assert first.state_dict() == second.state_dict() == {"now": 0.625, "share": 0.625, "follow": "silent"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"follow": "sinus"}, r"follow: got 'sinus'; accepted: linear \| drop \| silent \| unsolved"),
        ({"follow": "linear"}, r"updates: got None; accepted: an integer of at least 1"),
        ({"follow": "drop", "updates": 0}, r"updates: got 0"),
        ({"follow": "silent", "updates": 9}, r"updates: got 9; accepted: null with"),
        ({"follow": "silent", "start": -1.0}, r"start: got -1.0"),
        ({"follow": "silent", "end": float("nan")}, r"end: got nan"),
        ({"follow": "silent", "smoothing": 1.0}, r"smoothing: got 1.0"),
    ],
)
def test_wrong_settings(settings, said):
    with pytest.raises(ConfigError, match=rf"model.process_weight.{said}"):
        ProcessWeight(**settings)


@pytest.mark.parametrize("number", [-0.1, float("nan"), float("inf")])
def test_wrong_numbers(number):
    with pytest.raises(ConfigError, match=r"model.process_weight: got"):
        ChangingWeight(number)
