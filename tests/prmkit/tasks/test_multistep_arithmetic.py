import json
import re
from dataclasses import dataclass

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.formats.bound import BoundStepFormat
from prmkit.protocols import VerifiableTask
from prmkit.records import Problem
from prmkit.tasks import MultistepArithmeticTask, get_task
from prmkit.tasks.generated import SPLIT_SHARES
from prmkit.tasks.multistep_arithmetic import benchmark_hashes, final_answer, question_hash
from prmkit.tasks.multistep_lines import evaluate, next_line, parse_expression, solution_lines

TASK = get_task("multistep_arithmetic")
QUESTION = "((-1 + 2 + 2 * 9 * 5) * (-2 + -4 + -4 * -7)) ="
WORKING = """\
a=-1
b=-1+2
c=+1+2
d=+1+81
e=81*5=04,90
e=+1+09
A=+19
f=*-2
g=-2-4
h=-6-4
i=-6+82
B=+22
C=+19*22
C=19*2=20,81
C=19*02=0,20,81
C=281+0281=2002
D=+2002
=2002"""


def in_usual_order(line):
    """A line of terms as Python can evaluate it: every run of digits turned round."""
    return re.sub(r"\d+", lambda match: str(int(match[0][::-1])), line)


def benchmark(data_dir):
    return json.loads((data_dir / "bbh" / "multistep_arithmetic_two.json").read_text())["examples"]


def test_the_documented_working():
    assert "\n".join(solution_lines(parse_expression(QUESTION))) == WORKING
    assert isinstance(TASK, VerifiableTask)


def test_all_benchmark_problems_are_solved_and_refused(data_dir):
    examples = benchmark(data_dir)
    assert len(examples) == 250
    for example in examples:
        lines = solution_lines(parse_expression(example["input"]))
        assert str(evaluate(example["input"])) == example["target"] == final_answer("\n".join(lines))
        assert question_hash(example["input"]) in benchmark_hashes()
        assert not TASK.admits(example["input"])
    assert len(benchmark_hashes()) == 250


@dataclass(frozen=True)
class Insistent(MultistepArithmeticTask):
    """Draws one benchmark question before every other one."""

    question: str = ""

    def draw(self, rng, split):
        return self.question if rng.random() < 0.9 else super().draw(rng, split)


def test_a_drawn_benchmark_problem_is_never_given_out(data_dir):
    for example in benchmark(data_dir)[:20]:
        task = Insistent(question=example["input"])
        assert all(task.problem(split, 0).question != example["input"] for split in SPLIT_SHARES)


def python_value(line):
    """What a line of working claims, worked out by Python: (label, value)."""
    label, *parts = line.split("=")
    if "," in parts[-1] or (len(parts) > 1 and "*" in parts[0]):
        groups = parts[-1].split(",")
        result = int(("".join(group[0] for group in groups) + groups[-1][1])[::-1])
        assert eval(in_usual_order(parts[0])) == result
    elif len(parts) > 1:
        assert eval(in_usual_order(parts[0])) == eval(in_usual_order(parts[1]))
    return label, eval(in_usual_order(parts[0])) if label else int(parts[0])


@pytest.mark.parametrize("split", ["train", "validation", "test", "hard"])
def test_every_line_against_python(split):
    """An independent twin: Python evaluates the question, its beginnings, and every line."""
    for problem in TASK.problems(split, 300):
        left, operator, right = re.fullmatch(r"\(\((.*)\) (.) \((.*)\)\) =", problem.question).groups()
        assert left.count(" ") == right.count(" ") == 6
        values = {"A": eval(left), "B": eval(right), "C": eval(f"({left}) {operator} ({right})")}
        values |= {"D": values["C"], "": values["C"]}
        for side, letters in ((left, "abcd"), (right, "efgh")):
            words = side.split(" ")
            values |= {letter: eval(" ".join(words[: 2 * i + 1])) for i, letter in enumerate(letters)}
        lines = problem.solution.split("\n")
        assert [line[2] for line in lines if re.match(r"e=[-+*][-+]", line)] == [operator]
        for line in (re.sub(r"^e=[-+*](?=[-+])", "e=", line) for line in lines):
            working = line.count("=") == 2
            label, value = python_value(line)
            assert working or value == values[label]
        assert problem.answer == str(values["C"]) == TASK.grader.extract(problem.solution)
        assert all(TASK.check(problem, lines))


def test_carries_are_those_of_written_multiplication():
    # 487 * 6: 7*6 = 42, 8*6+4 = 52, 4*6+5 = 29
    expression = parse_expression("((1 * -6 + 1) - (3 + 4)) =")
    assert next_line(expression, ["a=+5-784"]) == "b=784*6=24,25,92"
    assert next_line(expression, ["a=+5-784", "b=784*6=24,25,92"]) == "b=+5+2292"
    assert next_line(expression, ["a=+5-784", "b=784*6=24,25,93"]) == "b=+5+2293"  # as written
    assert next_line(expression, ["b=+5-784"]) == "c=-284+1"  # 5 - 487


@pytest.mark.parametrize(
    ("lines", "following"),
    [
        ([], "a=+1"),
        (["a=+1"], "b=-2"),  # 1 * -2
        (["b=-2"], "c=-2-3"),
        (["c=-2-3"], "d=-5+0"),
        (["c=-2+54"], "d=+34+0"),  # -2 + 45
        (["c=+3-3"], "d=+0+0"),
        (["d=-0-0"], "A=-0"),
        (["d=-99-1"], "A=-001"),  # -99 - 1
        (["d=+001-99"], "A=+1"),
        (["A=+5"], "e=-+4"),
        (["e=-+4"], "f=+63"),  # 4 * 9
        (["e=+21"], "f=21*9=81,01"),  # 12 * 9: 8 and carry 1; 9 + 1 is 0 and carry 1
        (["A=+5", "e=--4", "B=-7"], "C=+5+7"),
        (["A=+5", "e=*-4", "B=-7"], "C=+5*-7"),  # the operator as written
        (["A=+5", "B=-7"], None),  # no operator
        (["B=-7"], None),  # no left side to combine with
        (["A=+5-1", "e=-+4", "B=-7"], None),  # a left side not worked out
        (["D=-21"], "=-12"),
        (["D=-0"], "=0"),
        (["=-12"], None),
        (["a=+1", "nonsense"], None),
        (["z=+1"], None),
        (["C=+21*345", "C=21*3=63,30"], "C=21*04=0,80,40"),  # 12 * 543, by 3 and 40
        (["C=+21*345", "C=21*3=63,30", "C=21*04=0,80,40"], "C=63+084=615"),  # 36 + 480 = 516
        (["C=+21*345", "C=21*3=63,30", "C=21*04=0,80,40", "C=63+084=615"], "C=21*005=0,0,01,60"),
        (["C=+21*54", "C=21*5=01,60", "C=21*04=0,80,40", "C=06+084=045"], "D=+045"),
        (["C=+54*04", "C=54*0=00,00", "C=54*04=0,02,61"], "C=0+0061=0061"),
        (["C=-3*-4", "C=3*4=21"], "D=+21"),
        (["C=21*3=63,30"], None),
        (["C=63+084=615"], None),
    ],
)
def test_next_line(lines, following):
    question = "((1 * -2 - 3 + 0) - (4 * 9 + 1 - 1)) ="
    assert next_line(parse_expression(question), lines) == following


def test_check_judges_by_the_line_before_as_written():
    problem = Problem("p", QUESTION, "2002")
    lines = WORKING.split("\n")
    count = len(lines)
    assert TASK.check(problem, lines) == (True,) * count
    slipped = [*lines[:2], "c=+2+2", "d=+2+81", "e=81*5=04,91", "e=+2+091", "A=+291", *lines[7:12], "C=+291*22"]
    assert TASK.check(problem, slipped) == (True, True, False, True, False, *(True,) * 8)
    assert TASK.check(problem, [lines[0], "?", lines[2]]) == (True, False, False)
    assert TASK.check(problem, [*lines, "=2002"])[-1] is False
    assert TASK.check(problem, lines[1:])[:2] == (False, True)
    assert TASK.check(problem, []) == ()


def test_teachers_are_exact_unless_told_otherwise():
    problem = TASK.problem("train", 0)
    assert TASK.demonstration(problem, 1) == problem.solution
    sloppy = get_task("multistep_arithmetic", teacher_error=0.2)
    wrong = total = 0
    for problem in sloppy.problems("train", 300):
        lines = sloppy.demonstration(problem, 1).split("\n")
        verdicts = sloppy.check(problem, lines)
        wrong, total = wrong + verdicts.count(False), total + len(verdicts)
        assert lines == sloppy.demonstration(problem, 1).split("\n")
    assert wrong / total == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("A=+1\n=-50", "-50"),
        ("=7\n", "7"),
        ("C=+42", None),
        ("=24\nC=+1", None),
        ("= 5", None),
        ("=-0", "0"),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert TASK.grader.extract(text) == answer


def test_tokenizer_keeps_digits_signs_and_newlines_alone():
    tokenizer = TASK.tokenizer()
    assert len(tokenizer) == 187
    assert tokenizer.tokenize("((-1 + -2 * 3) - (4 - 5)) =\na=-1-6\n") == [
        *("((-1", " + -2", " * 3", ") - (4", " - 5", ")) =", "\n"),
        *("a=", "-", "1", "-", "6", "\n"),
    ]
    for problem in TASK.problems("train", 100):
        text = f"{problem.question}\n{problem.solution}"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
    bound = BoundStepFormat(TASK.step_format, tokenizer)
    assert bound.decode(bound.label_ids) == "-+"
    assert [step.text for step in bound.split_ids(bound.solution_ids(WORKING))] == WORKING.split("\n")


def test_bad_input():
    with pytest.raises(ConfigError, match=r"task\.multistep_arithmetic\.operands: got 1"):
        get_task("multistep_arithmetic", operands=1)
    with pytest.raises(DataError, match="not a question"):
        TASK.check(Problem("p", "1 + 1 =", "2"), ["=2"])
