"""Many problems at once: work is batched over problems, and nothing is encoded twice."""

import asyncio

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification

from prmkit.engines.inprocess.hf import HFEngine
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.spec import PRMFormat, StepFormat
from prmkit.models.prm import PRMModel
from prmkit.records import Problem
from prmkit.scoring.prm import PRMScorer
from prmkit.scoring.table import TableScorer
from prmkit.search.budget import Budget, BudgetLimits
from prmkit.search.methods import make_method, make_params

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
}
EXACT = torch.backends.mkl.is_available()  # where products are the same to the last bit in every batch


def tiny_prm(tokenizer):
    torch.manual_seed(0)
    bound = BoundStepFormat(
        StepFormat(prm=PRMFormat(head="scalar", tag="", after_step="\n", read="step_end")), tokenizer
    )
    config = Qwen2Config(vocab_size=len(tokenizer), num_labels=1, **SIZES)
    return PRMModel(Qwen2ForTokenClassification(config), bound).eval()


def eight_steps(question, written):
    if len(written) < 8:
        return dict.fromkeys("abcdefgh", 1.0)
    return {}


def together(search, problems, engine, scorer, budgets):
    async def main():
        return await asyncio.gather(
            *(search(problem, engine, scorer, budget=budget) for problem, budget in zip(problems, budgets, strict=True))
        )

    return asyncio.run(main())


@pytest.mark.parametrize("name", ["beam_search", "dvts", "rebase"])
def test_engine_batches_grow_with_depth_and_not_with_problems(step_policy, name):
    values = {"beam_search": {"n": 16, "width": 4}, "dvts": {"n": 16, "width": 4}, "rebase": {"n": 16}}[name]
    search = make_method(name, make_params(name, values))
    batches = {}
    for count in (1, 7, 40):
        engine = step_policy(eight_steps)
        problems = [Problem(f"p{i}", f"q{i}", "1") for i in range(count)]
        scorer = TableScorer({letter: (1 + place) / 10 for place, letter in enumerate("abcdefgh")})
        together(search, problems, engine, scorer, [Budget() for _ in problems])
        batches[count] = engine.batches
    assert batches[1] == 9, "eight steps and the end of sequence"
    assert batches[40] == batches[7] == batches[1]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("best_of_n", {"n": 12}),
        ("beam_search", {"n": 12, "width": 4, "lookahead": 1}),
        ("dvts", {"n": 12, "width": 4}),
        ("rebase", {"n": 12}),
        ("mcts", {"simulations": 12, "leaf": "prm"}),
        ("mcts", {"simulations": 8, "leaf": "rollout"}),
        ("rstar", {"simulations": 6}),
    ],
)
def test_the_prm_encodes_every_distinct_token_once(digit_policy, last_step_grader, name, values):
    """Against the distinct prefixes of all inputs that were scored."""
    model = tiny_prm(digit_policy.format.tokenizer)
    scorer = PRMScorer(model)
    asked = []

    class Watched:
        async def score(self, question, steps):
            asked.append((question, tuple(steps)))
            return await scorer.score(question, steps)

    problems = [Problem(f"p{i}", f"q{i}", "1") for i in range(6)]
    budgets = [Budget() for _ in problems]
    search = make_method(name, make_params(name, values), grader=last_step_grader)
    together(search, problems, digit_policy, Watched(), budgets)
    inputs = []
    for question, steps in asked:
        encoded = model.format.encode_steps(question, steps)
        inputs.append(encoded.input_ids[: encoded.positions[-1] + 1])
    distinct = {ids[: n + 1] for ids in inputs for n in range(len(ids))}
    # Problems begin alike ("q"); whatever of it they share is encoded for the first of them only.
    assert sum(budget.spent.scored_tokens for budget in budgets) == len(distinct)
    assert len(set(asked)) == len(asked), "no solution is asked about twice"


@pytest.mark.skipif(not EXACT, reason="matrix products depend on the batch here")
@pytest.mark.parametrize("name", ["beam_search", "mcts", "rebase"])
def test_real_models_give_the_same_alone_and_in_company(step_policy, name):
    tokenizer = step_policy(None).format.tokenizer
    torch.manual_seed(1)
    policy = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **SIZES)).eval()
    model = tiny_prm(tokenizer)
    values = {"sampling": {"max_tokens": 60}, "step_tokens": 30, "seed": 2}
    values |= {"n": 8, "width": 2} if name == "beam_search" else {"simulations": 8} if name == "mcts" else {"n": 8}
    search = make_method(name, make_params(name, values))
    problems = [Problem(f"p{i}", f"q{i} and so on", "1") for i in range(8)]

    def run(chosen):
        engine, scorer = HFEngine(policy, step_policy(None).format), PRMScorer(model)
        budgets = [Budget(BudgetLimits(generated_tokens=600)) for _ in chosen]
        results = together(search, chosen, engine, scorer, budgets)
        assert engine.stats.generated_tokens == sum(budget.spent.generated_tokens for budget in budgets)
        return dict(zip([problem.id for problem in chosen], results, strict=True))

    company = run(problems)
    assert run(problems[::-1]) == company
    for problem in problems[:3]:
        assert run([problem])[problem.id].nodes == company[problem.id].nodes
        assert run([problem])[problem.id].traces == company[problem.id].traces
