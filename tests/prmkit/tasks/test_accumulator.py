import pytest
from hypothesis import given
from hypothesis import strategies as st

from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import VerifiableTask
from prmkit.records import Problem
from prmkit.tasks import get_task
from prmkit.tasks.accumulator import apply, is_hard, misapply, parse_program

TASK = get_task("accumulator")
PROBLEM = Problem("p", "f+5g*3h-8,7", "C")
STEPS = ("f+5=C", "g*3=4", "h-8=C")


def slow_value(question, count):
    """The accumulator after `count` operations, worked out without the module under test."""
    program, value = question.rsplit(",", 1)
    value = int(value, 16)
    for at in range(0, 3 * count, 3):
        operand = int(program[at + 2])
        value = {"+": value + operand, "-": value - operand, "*": value * operand}[program[at + 1]] & 15
    return f"{value:X}"


def test_the_documented_program():
    assert TASK.solve(PROBLEM.question)[:2] == ("\n".join(STEPS), "C")
    assert TASK.check(PROBLEM, STEPS) == (True, True, True)
    assert TASK.grader.extract("\n".join(STEPS)) == "C"
    assert isinstance(TASK, VerifiableTask)


@pytest.mark.parametrize(
    ("steps", "verdicts"),
    [
        (("f+5=D", "g*3=7", "h-8=F"), (False, True, True)),  # right from the wrong value on
        (("f+5=C", "h-8=4", "h-8=C"), (True, False, True)),  # an operation out of its place
        (("f+5=C", "g*3=4 "), (True, True)),
        (("f+5=c", "g*3=4"), (False, False)),  # lower-case digit: malformed, and nothing to go on from
        (("f+5", "g*3=4", "h-8=C"), (False, False, True)),
        ((*STEPS, "i+3=F"), (True, True, True, False)),  # beyond the program
        (("g+5=C",), (False,)),
        ((), ()),
    ],
)
def test_check(steps, verdicts):
    assert TASK.check(PROBLEM, steps) == verdicts


@pytest.mark.parametrize("split", ["train", "validation", "test", "hard"])
def test_problems_against_a_slow_twin(split):
    for problem in TASK.problems(split, 200):
        lines = problem.solution.split("\n")
        assert [line[-1] for line in lines] == [slow_value(problem.question, i + 1) for i in range(len(lines))]
        assert problem.answer == lines[-1][-1]
        assert all(TASK.check(problem, lines))
        count = len(lines)
        assert count in ((7, 8) if split == "hard" else (4, 5, 6, 7, 8) if split == "train" else (4, 5, 6))
        assert all(line[2] in ("357" if line[1] == "*" else "345678") for line in lines)


def test_any_changed_character_of_a_right_line_is_wrong():
    problem = TASK.problem("test", 0)
    lines = problem.solution.split("\n")
    for at in range(len(lines[1])):
        wrong = lines[1][:at] + ("+" if lines[1][at] != "+" else "-") + lines[1][at + 1 :]
        assert TASK.check(problem, [lines[0], wrong])[1] is False


def test_problems_are_pure_functions_of_split_and_index():
    assert (
        TASK.problems("test", 5, offset=7)[2] == TASK.problem("test", 9) == get_task("accumulator").problem("test", 9)
    )
    assert TASK.problem("test", 3) != TASK.problem("validation", 3)


def test_splits_are_disjoint_even_when_programs_are_few():
    small = get_task("accumulator", min_ops=1, max_ops=1, hard_min_ops=1, hard_max_ops=1)
    seen = {split: {p.question for p in small.problems(split, 1500)} for split in small.splits}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))


def test_long_programs():
    task = get_task("accumulator", hard_min_ops=12, hard_max_ops=16)
    for problem in task.problems("hard", 30):
        lines = problem.solution.split("\n")
        assert 12 <= len(lines) <= 16
        assert len({line[0] for line in lines}) == len(lines)


@pytest.mark.parametrize(
    ("operator", "value", "operand", "right", "wrong", "hard"),
    [
        ("+", 12, 7, 3, 4, True),  # 19: wraps at 15
        ("+", 12, 6, 2, 3, False),
        ("+", 3, 5, 8, 8, False),
        ("-", 2, 6, 12, 4, True),  # absolute difference
        ("-", 3, 6, 13, 3, False),
        ("-", 9, 6, 3, 3, False),
        ("*", 13, 5, 1, 14, True),  # 65; next entry of the table is 78
        ("*", 12, 5, 12, 8, False),
    ],
)
def test_operations_and_misconceptions(operator, value, operand, right, wrong, hard):
    assert (apply(operator, value, operand), misapply(operator, value, operand)) == (right, wrong)
    assert is_hard(operator, value, operand) is hard


def test_teachers_slip_as_often_as_they_should_and_only_by_misconception():
    counts = {True: [0, 0], False: [0, 0]}
    for problem in TASK.problems("train", 3000):
        operations, value = parse_program(problem.question)
        lines = TASK.demonstration(problem, 1).split("\n")
        assert lines == TASK.demonstration(problem, 1).split("\n")
        for (label, operator, operand), line in zip(operations, lines, strict=True):
            written = int(line[-1], 16)
            right, wrong = apply(operator, value, operand), misapply(operator, value, operand)
            assert line[:-1] == f"{label}{operator}{operand}="
            assert written in (right, wrong)
            if right != wrong:
                tally = counts[is_hard(operator, value, operand)]
                tally[0] += written == wrong
                tally[1] += 1
            value = written
    for hard, expected in ((True, 0.57), (False, 0.18)):
        slips, chances = counts[hard]
        assert slips / chances == pytest.approx(expected, abs=4 * (expected * (1 - expected) / chances) ** 0.5)


def test_demonstrations_differ_by_seed_and_are_exact_without_slips():
    problem = TASK.problem("train", 0)
    assert len({TASK.demonstration(problem, seed) for seed in range(20)}) > 1
    exact = get_task("accumulator", slip_hard=0.0, slip_easy=0.0)
    assert exact.demonstration(problem, 5) == problem.solution


@given(st.text(alphabet="0123456789ABCDEFabcdz+-*=,\n x", max_size=40))
def test_check_takes_any_text(text):
    verdicts = TASK.check(PROBLEM, text.split("\n"))
    assert len(verdicts) == text.count("\n") + 1


@pytest.mark.parametrize("text", ["", "f+5=", "f+5=C\ng*3", "f+5=C\n\n!", "=CC"])
def test_no_answer(text):
    assert TASK.grader.extract(text) is None


def test_tokenizer_is_one_token_a_character_and_round_trips(tmp_path):
    tokenizer = TASK.tokenizer()
    assert len(tokenizer) == 52
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    problem = TASK.problem("hard", 1)
    text = problem.question + "\n" + problem.solution
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("?") == [tokenizer.unk_token_id]
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path).encode(text) == ids


def test_step_format_binds():
    bound = BoundStepFormat(TASK.step_format, TASK.tokenizer())
    problem = TASK.problem("test", 0)
    steps = bound.split_ids(bound.solution_ids(problem.solution))
    assert "\n".join(step.text for step in steps) == problem.solution
    encoded = bound.encode_steps(problem.question, [step.text for step in steps])
    assert [encoded.input_ids[p] for p in encoded.positions] == list(bound.tag_ids) * len(steps)
    assert bound.decode(bound.label_ids) == "-+"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_ops": 7}, r"task\.accumulator\.min_ops, max_ops: got \(7, 6\)"),
        ({"hard_max_ops": 27}, r"hard_max_ops"),
        ({"slip_easy": 1.5}, r"task\.accumulator\.slip_easy: got 1\.5"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ConfigError, match=match):
        get_task("accumulator", **options)


def test_bad_requests():
    with pytest.raises(ConfigError, match=r"split: got 'dev'; accepted: train \| validation \| test \| hard"):
        TASK.problem("dev", 0)
    with pytest.raises(ConfigError, match="endless"):
        TASK.problems("test")
    with pytest.raises(DataError, match="not a program"):
        TASK.check(Problem("p", "1+1", "2"), ["2"])
