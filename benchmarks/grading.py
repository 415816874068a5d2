"""How right and how fast the grader of mathematical answers is, on hand-judged pairs and on public data.

    PRMKIT_DATA=folder python benchmarks/grading.py

The folder holds gsm8k/test.jsonl, gsm8k/train.jsonl, math/math500.jsonl and processbench/gsm8k.json. Written to
results/grading.json. `random_unequal_accepted` is of 100,000 pairs of different values of one kind; `attack_strings`
counts the strings that `prmkit.grading.attack` tries on every gold answer of MATH-500 and GSM8K.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from _environment import write_result

from prmkit.grading import MathGrader
from prmkit.grading.attack import Target, attack

TESTS = Path(__file__).resolve().parents[1] / "tests" / "prmkit" / "grading"
EXTRACTORS = ("hashes", "boxed", "answer_is", "last_number")


def module(name: str) -> ModuleType:
    """A file of tests, for the generators that are there."""
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def share(grader: MathGrader, pairs: Sequence[tuple[str | None, str]]) -> float:
    return round(sum(grade.correct for grade in grader.grade(pairs)) / len(pairs), 4)


def judged(grader: MathGrader) -> dict[str, Any]:
    pairs = lines(TESTS / "data" / "judged_pairs.jsonl")
    answers = [pair["answer"] if "answer" in pair else grader.extract(pair["text"]) for pair in pairs]
    asked = [(answer, pair["gold"]) for answer, pair in zip(answers, pairs, strict=True)]
    begin = time.process_time()
    verdicts = [grade.correct for grade in grader.grade(asked)]
    seconds = time.process_time() - begin
    right = sum(verdict == pair["equal"] for verdict, pair in zip(verdicts, pairs, strict=True))
    return {
        "judged_pairs": len(pairs),
        "agreement": round(right / len(pairs), 4),
        "false_accepts": sum(v and not pair["equal"] for v, pair in zip(verdicts, pairs, strict=True)),
        "judged_pairs_main_process_s": round(seconds, 2),
    }


def processbench(grader: MathGrader, data: Path) -> dict[str, Any]:
    golds = {
        record["question"].strip(): record["answer"].split("####")[1].strip()
        for split in ("train", "test")
        for record in lines(data / "gsm8k" / f"{split}.jsonl")
    }
    records = json.loads((data / "processbench" / "gsm8k.json").read_text(encoding="utf-8"))
    pairs = [(grader.extract("\n".join(r["steps"])), golds[r["problem"].strip()]) for r in records]
    rows = zip(records, grader.grade(pairs), strict=True)
    different = [record["id"] for record, grade in rows if grade.correct != record["final_answer_correct"]]
    return {
        "processbench_agreement": round(1 - len(different) / len(records), 4),
        "processbench_different": different,
    }


def timings(gsm8k: Sequence[dict[str, Any]], math500: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of wall clock, with one worker, verdicts not known before."""
    golds = [record["answer"].split("####")[1].strip() for record in gsm8k]
    pairs = [(f"{gold} dollars", gold) for gold in golds] + list(zip(golds[1:] + golds[:1], golds, strict=True))
    pairs += [(str(index), gold) for index, gold in enumerate(golds)] + [(gold, gold) for gold in golds]
    answers = [r["answer"] for r in math500]
    hard = [(f"{answer}+x-x", answer) for answer in answers]  # algebra wherever the answer is an expression
    hard += list(zip(answers[1:301], answers[:300], strict=True))
    with MathGrader(workers=1) as grader:
        grader.grade([("x+x", "2x"), ("\\int_0^1 x dx", "\\sum_{n=1}^{3} n")])
        begin = time.monotonic()
        grader.grade(pairs)
        middle = time.monotonic()
        grader.grade(hard)
        end = time.monotonic()
    return {
        "gsm8k_verdicts": len(pairs),
        "gsm8k_s": round(middle - begin, 2),
        "math_answers": len(hard),
        "math_s": round(end - middle, 2),
        "pairs_per_second": round((len(pairs) + len(hard)) / (end - begin)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("PRMKIT_DATA"), help="the folder of data")
    data = Path(parser.parse_args().data)
    gsm8k, math500 = lines(data / "gsm8k" / "test.jsonl"), lines(data / "math" / "math500.jsonl")
    properties, real = module("test_grading_properties"), module("test_grading_real_data")
    with MathGrader(extractors=EXTRACTORS) as grader:
        with MathGrader() as usual:
            figures = judged(usual)
        made = list(real.sentences(gsm8k))[:600]
        figures["gsm8k_sentences"] = len(made)
        figures["gsm8k_sentences_accepted"] = share(grader, [(grader.extract(text), gold) for text, gold in made])
        figures |= processbench(grader, data)
        figures["random_unequal_pairs"] = 100_000
        figures["random_unequal_accepted"] = len(properties.accepted_unequal(grader, 100_000, seed=2))
        targets = [Target(r["answer"], r["problem"]) for r in math500]
        targets += [Target(r["answer"].split("####")[1].strip(), r["question"]) for r in gsm8k]
        tried, holes = attack(grader, targets)
        figures |= {"attack_strings": tried, "attack_strings_accepted": len(holes)}
    figures |= timings(gsm8k, math500)
    print(json.dumps(figures, indent=1))
    print(write_result("grading", figures, ("math-verify", "mpmath", "sympy")))


if __name__ == "__main__":
    main()
