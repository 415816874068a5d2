"""Tokens per second of the in-process engine against transformers' `model.generate`.

    python benchmarks/generation.py [--quick] [--threads 2] [--repeats 5]

Both sides sample from the same model, the demo's policy by its sizes, with random weights whose logits for the newline
and the end of sequence are shifted so that steps and solutions have about the demo's lengths. `generate` gets what a
careful user gives it: one left-padded batch, `num_return_sequences`, newline as an end-of-sequence id where steps are
wanted, and no log-probabilities, which the engine returns. Counted are tokens up to each sample's own end. Prompts are
new in every repeat; the sides take turns, and the figures are medians of the repeats' ratios.

Written to results/generation.json, all of them our tokens per second over those of `generate`:

- uniform_vs_generate: the least of `uniform`: 64, 128 and 256 different prompts of one length, 32 new tokens each.
- ragged_vs_generate: the least of `ragged`:
  - samples: 16 samples of each of 16 prompts, to their ends.
  - steps: 16 searches at once; 6 times, 4 samples of one more step from each of 4 prefixes.
- range: lowest and highest repeat of each.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from _environment import write_result
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from prmkit.engines import HFEngine
from prmkit.formats.bound import BoundStepFormat
from prmkit.records import GenerationRequest, SamplingParams
from prmkit.tasks.accumulator import AccumulatorTask

NEWLINE = "\n"
Ids = tuple[int, ...]


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        name: for printing.
        sample: (prompts, samples of each, most tokens, stop at newlines, seed) -> for every prompt its samples' tokens,
            each up to its own end.
    """

    name: str
    sample: Callable[[Sequence[Ids], int, int, bool, int], list[list[Ids]]]


def demo_model(bound: BoundStepFormat, step_tokens: float, solution_tokens: float) -> Qwen2ForCausalLM:
    """The demo's policy by size, ending steps and solutions after about so many tokens (infinity: never)."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(bound.tokenizer),
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=256,
        initializer_range=0.06,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=bound.eos_id,
        pad_token_id=bound.eos_id,
    )
    model = Qwen2ForCausalLM(config).eval()
    shift_logits(model, {bound.encode_piece(NEWLINE)[0]: 1 / step_tokens, bound.eos_id: 1 / solution_tokens})
    return model


@torch.no_grad()
def shift_logits(model: Qwen2ForCausalLM, wanted: dict[int, float]) -> None:
    """Give tokens about these probabilities everywhere. All embeddings get a direction in common, which hidden states
    then share; how much of it a token's own embedding has moves its logit."""
    table = model.get_input_embeddings().weight
    direction = torch.full((table.shape[1],), 0.2)
    table += direction
    ids = torch.randint(0, len(table), (64, 32))
    for token, probability in wanted.items():
        ids[torch.rand(ids.shape) < probability] = token
    for _ in range(20):
        hidden = model.model(ids).last_hidden_state
        found = torch.softmax(model.lm_head(hidden), -1).mean((0, 1))
        for token, probability in wanted.items():
            aim = max(probability, 1e-6)
            missing = math.log(aim / (1 - aim)) - float(torch.logit(found[token], eps=1e-6))
            table[token] += 0.5 * missing / (hidden @ direction).mean() * direction


def engine_side(model: nn.Module, bound: BoundStepFormat, max_rows: int) -> Side:
    engine = HFEngine(model, bound, max_rows=max_rows)
    runner = asyncio.Runner()  # one event loop for all calls, as in a program

    def sample(prompts: Sequence[Ids], n: int, tokens: int, steps: bool, seed: int) -> list[list[Ids]]:
        params = SamplingParams(max_tokens=tokens, stop=(NEWLINE,) if steps else ())

        async def run() -> list[list[Ids]]:
            requests = [GenerationRequest(ids, n, seed * 2**30 + k * 1024, params) for k, ids in enumerate(prompts)]
            answers = await asyncio.gather(*(engine.generate(request) for request in requests))
            return [[completion.token_ids for completion in completions] for completions in answers]

        return runner.run(run())

    return Side("engine", sample)


def generate_side(model: Qwen2ForCausalLM, bound: BoundStepFormat) -> Side:
    newline = bound.encode_piece(NEWLINE)[0]

    @torch.inference_mode()
    def sample(prompts: Sequence[Ids], n: int, tokens: int, steps: bool, seed: int) -> list[list[Ids]]:
        torch.manual_seed(seed)
        width = max(map(len, prompts))
        ids = torch.tensor([(bound.eos_id,) * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([(0,) * (width - len(prompt)) + (1,) * len(prompt) for prompt in prompts])
        ends = [bound.eos_id, newline] if steps else [bound.eos_id]
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=tokens,
            eos_token_id=ends,
            pad_token_id=bound.eos_id,
        )
        rows = []
        for row in output[:, width:].tolist():
            end = next((at for at, token in enumerate(row, start=1) if token in ends), len(row))
            rows.append(tuple(row[:end]))
        return [rows[at : at + n] for at in range(0, len(rows), n)]

    return Side("generate", sample)


class Prompts:
    """Prompts of the built-in task, never the same twice."""

    def __init__(self, bound: BoundStepFormat) -> None:
        self._bound = bound
        self._task = AccumulatorTask()
        self._next = 0

    def take(self, count: int, length: int | None = None) -> list[Ids]:
        """The next `count` prompts, only those of one length if that is given."""
        found: list[Ids] = []
        while len(found) < count:
            ids = self._bound.prompt_ids(self._task.problem("train", self._next).question)
            self._next += 1
            if length is None or len(ids) == length:
                found.append(ids)
        return found


def uniform(side: Side, prompts: list[Ids], seed: int) -> int:
    """Tokens generated: 32 for each prompt."""
    return sum(len(ids) for samples in side.sample(prompts, 1, 32, False, seed) for ids in samples)


def samples(side: Side, prompts: list[Ids], seed: int) -> int:
    """Tokens generated: 16 samples of each prompt."""
    return sum(len(ids) for each in side.sample(prompts, 16, 64, False, seed) for ids in each)


def steps(side: Side, prompts: list[Ids], seed: int, depth: int = 6, beams: int = 4) -> int:
    """Tokens generated: from every prefix 4 samples of a step; the longest go on, as many as there are beams."""
    searches = [[prompt] for prompt in prompts]
    total = 0
    for level in range(depth):
        prefixes = [prefix for search in searches for prefix in search]
        found = iter(side.sample(prefixes, 4, 16, True, seed * depth + level))
        for search in searches:
            children = [(prefix, ids) for prefix in search for ids in next(found)]
            total += sum(len(ids) for _, ids in children)
            distinct = sorted(
                {prefix + ids for prefix, ids in children if ids[-1] != 2}, key=lambda ids: (-len(ids), ids)
            )
            search[:] = distinct[:beams]
    return total


def ratios(
    sides: tuple[Side, Side],
    work: Callable[[Side, list[Ids], int], int],
    prompts: Callable[[], list[Ids]],
    repeats: int,
) -> list[float]:
    """Tokens per second of the first side over those of the second, once for every repeat after a warm-up."""
    found = []
    for repeat in range(repeats + 1):
        given = prompts()
        speeds = {}
        for side in sides if repeat % 2 else sides[::-1]:
            start = time.perf_counter()
            tokens = work(side, given, repeat)
            speeds[side.name] = tokens / (time.perf_counter() - start)
        if repeat:
            found.append(speeds[sides[0].name] / speeds[sides[1].name])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two repeats of smaller work; writes no result")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    bound = BoundStepFormat(AccumulatorTask().step_format, AccumulatorTask().tokenizer())
    prompts = Prompts(bound)
    repeats = 2 if arguments.quick else arguments.repeats
    found: dict[str, list[float]] = {}

    endless = demo_model(bound, step_tokens=6, solution_tokens=float("inf"))
    for rows in (64,) if arguments.quick else (64, 128, 256):
        sides = engine_side(endless, bound, max_rows=rows), generate_side(endless, bound)
        found[f"uniform.{rows}"] = ratios(sides, uniform, lambda rows=rows: prompts.take(rows, length=18), repeats)
    model = demo_model(bound, step_tokens=6, solution_tokens=30)
    problems = 4 if arguments.quick else 16
    for name, work in (("samples", samples), ("steps", steps)):
        sides = engine_side(model, bound, max_rows=256), generate_side(model, bound)
        found[f"ragged.{name}"] = ratios(sides, work, lambda: prompts.take(problems), repeats)

    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    for name, values in found.items():
        print(f"{name:>16}: {medians[name]:5.2f} x  (from {min(values):.2f} to {max(values):.2f})")
    if arguments.quick:
        return
    figures: dict[str, object] = {}
    for kind in ("uniform", "ragged"):
        own = {name.partition(".")[2]: value for name, value in medians.items() if name.startswith(kind)}
        figures[f"{kind}_vs_generate"] = min(own.values())
        figures[kind] = own
    figures["range"] = {name: [round(min(values), 2), round(max(values), 2)] for name, values in found.items()}
    print(write_result("generation", figures, ("torch", "transformers"), threads=arguments.threads, repeats=repeats))


if __name__ == "__main__":
    main()
