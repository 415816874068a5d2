import json
import re
from dataclasses import dataclass

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.tasks import MultistepArithmeticTask, get_task
from prmkit.tasks.generated import SPLIT_SHARES
from prmkit.tasks.multistep_arithmetic import benchmark_hashes, final_answer, question_hash
from prmkit.tasks.multistep_lines import evaluate, next_line, parse_expression, solution_lines
from prmkit.types import Problem, VerifiableTask

TASK = get_task("multistep_arithmetic")
QUESTION = "((-1 + 2 + 2 * 9 * 5) * (-2 + -4 + -4 * -7)) ="
WORKING = """\
A=-1+2+81*5
81*5=04,90
A=-1+2+09
A=+1+09
A=+19
B=-2-4+82
B=-6+82
B=+22
C=+19*22
19*2=20,81
19*02=0,20,81
281+0281=2002
C=+2002
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


@pytest.mark.parametrize("split", ["train", "validation", "test", "hard"])
def test_every_line_keeps_the_value(split):
    """An independent twin: Python evaluates the question and every line."""
    for problem in TASK.problems(split, 300):
        left, operator, right = re.fullmatch(r"\(\((.*)\) (.) \((.*)\)\) =", problem.question).groups()
        assert left.count(" ") == right.count(" ") == (8 if split == "hard" else 6)
        values = {"A": eval(left), "B": eval(right), "C": eval(f"({left}) {operator} ({right})")}
        lines = problem.solution.split("\n")
        for line in lines[:-1]:
            label, _, text = line.partition("=")
            if label in values:
                assert eval(in_usual_order(text)) == values[label]
            elif "+" in label:
                assert eval(in_usual_order(label)) == eval(in_usual_order(text))
            else:
                groups = text.split(",")
                digits = "".join(group[0] for group in groups) + groups[-1][1]
                assert eval(in_usual_order(label)) == int(digits[::-1])
        assert lines[-1] == f"={values['C']}"
        assert problem.answer == str(values["C"]) == TASK.grader.extract(problem.solution)
        assert all(TASK.check(problem, lines))


def test_carries_are_those_of_written_multiplication():
    # 487 * 6: 7*6 = 42, 8*6+4 = 52, 4*6+5 = 29
    expression = parse_expression("((1 + 2) - (3 + 4)) =")
    assert next_line(expression, ["A=-784*-6"]) == "784*6=24,25,92"
    assert next_line(expression, ["A=-784*-6", "784*6=24,25,92"]) == "A=+2292"


@pytest.mark.parametrize(
    ("lines", "following"),
    [
        (["A=+3-54"], "A=-24"),  # 3 - 45
        (["A=-6+6"], "A=+0"),
        (["A=-0-0+5"], "A=-0+5"),
        (["A=-0+5"], "A=+5"),
        (["A=-99-1"], "A=-001"),  # -99 - 1
        (["A=+001-99"], "A=+1"),
        (["A=+5"], "B=+3+4"),
        (["A=+5", "B=-7"], "C=+5+7"),
        (["B=-7"], None),  # no left side to combine with
        (["A=+5-1", "B=-7"], None),  # a left side not worked out
        (["C=-21"], "=-12"),
        (["C=-0"], "=0"),
        (["=-12"], None),
        (["A=+5", "nonsense"], None),
        (["C=+21*345", "21*3=63,30"], "21*04=0,84,40"),  # 12 * 543, by 3 and 40
        (["C=+21*345", "21*3=63,30", "21*04=0,84,40"], "63+084=615"),  # 36 + 480 = 516
        (["C=+21*345", "21*3=63,30", "21*04=0,84,40", "63+084=615"], "21*005=0,0,01,60"),
        (["C=+21*54", "21*5=01,60", "21*04=0,84,40", "06+084=045"], "C=+045"),
        (["C=+54*04", "54*0=00,00", "54*04=0,02,81"], "0+0081=0081"),
        (["63+084=615"], None),
    ],
)
def test_next_line(lines, following):
    assert next_line(parse_expression("((1 + 2) - (3 + 4)) ="), lines) == following


def test_check_judges_by_the_line_before_as_written():
    problem = Problem("p", QUESTION, "2002")
    lines = WORKING.split("\n")
    assert TASK.check(problem, lines) == (True,) * 14
    slipped = [*lines[:3], "A=+2+09", "A=+29", *lines[5:8], "C=+29*22"]
    assert TASK.check(problem, slipped) == (True, True, True, False, True, True, True, True, True)
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
    assert len(tokenizer) == 34
    assert tokenizer.tokenize("((-1 + -2 * 3) - (4 - 5)) =\nA=-1-6\n") == [
        *("((", "-", "1", " + ", "-", "2", " * ", "3", ") - (", "4", " - ", "5", ")) =", "\n"),
        *("A=", "-", "1", "-", "6", "\n"),
    ]
    for problem in TASK.problems("train", 100):
        text = f"{problem.question}\n{problem.solution}"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
    bound = TASK.step_format.bind(tokenizer)
    assert bound.decode(bound.label_ids) == "-+"
    assert [step.text for step in bound.split_ids(bound.solution_ids(WORKING))] == WORKING.split("\n")


def test_bad_input():
    with pytest.raises(ConfigError, match=r"task\.multistep_arithmetic\.operands: got 1"):
        get_task("multistep_arithmetic", operands=1)
    with pytest.raises(DataError, match="not a question"):
        TASK.check(Problem("p", "1 + 1 =", "2"), ["=2"])
