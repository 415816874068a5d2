import asyncio
import random

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForTokenClassification

from prmkit.errors import ConfigError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.spec import PRMFormat, StepFormat
from prmkit.models.prm import PRMModel
from prmkit.protocols import StepScorer
from prmkit.scoring import PRMScorer
from prmkit.tasks.accumulator import AccumulatorTask

TASK = AccumulatorTask()
EXACT = torch.backends.mkl.is_available()  # where products are the same to the last bit in every batch
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
}


def prm(seed=0, **format_fields):
    torch.manual_seed(seed)
    bound = BoundStepFormat(StepFormat(prm=PRMFormat(**format_fields)), TASK.tokenizer())
    labels = {"label_tokens": 2, "token_head": 2, "scalar": 1}[bound.spec.prm.head]
    kind = Qwen2ForCausalLM if bound.spec.prm.head == "label_tokens" else Qwen2ForTokenClassification
    config = Qwen2Config(vocab_size=len(bound.tokenizer), num_labels=labels, **SIZES)
    return PRMModel(kind(config), bound).eval()


@torch.no_grad()
def alone(model, question, steps):
    """The model's own forward of one trace."""
    encoded = model.format.encode_steps(question, steps)
    hidden = model.backbone(input_ids=torch.tensor([encoded.input_ids])).last_hidden_state[0]
    return model.probability(model.logits_at(hidden[list(encoded.positions)])).tolist()


def traces(n=60, seed=0):
    """Solutions of few problems, so that many begin alike, some are others' beginnings, some are others again."""
    rng = random.Random(seed)
    out = []
    for _ in range(n):
        problem = TASK.problem("train", rng.randrange(6))
        steps = TASK.demonstration(problem, rng.randrange(5)).split("\n")
        out.append((problem.question, steps[: rng.randint(1, len(steps))]))
    return out


def run(scorer, asked):
    async def main():
        return await asyncio.gather(*(scorer.score(*trace) for trace in asked))

    return asyncio.run(main())


def prefixes(model, asked):
    """Distinct prefixes of all inputs up to the last score: the tokens that have to be encoded at least."""
    inputs = []
    for trace in asked:
        encoded = model.format.encode_steps(*trace)
        inputs.append(encoded.input_ids[: encoded.positions[-1] + 1])
    return {ids[: n + 1] for ids in inputs for n in range(len(ids))}


FORMATS = [
    {},
    {"head": "token_head", "before_step": "s{i}=", "after_tag": ","},
    {"head": "scalar", "tag": "", "after_step": "\n", "read": "step_end"},
    {"read": "before_tag", "tag": "+", "after_step": "\n"},
]


@pytest.mark.parametrize("fields", FORMATS, ids=lambda fields: fields.get("head") or fields.get("read") or "plain")
@pytest.mark.parametrize("batch", [1, 100, 8192])
def test_scores_equal_a_plain_forward_and_every_token_is_encoded_once(fields, batch):
    model, asked = prm(**fields), traces()
    scorer = PRMScorer(model, max_batch_tokens=batch)
    assert isinstance(scorer, StepScorer)
    for trace, got in zip(asked, run(scorer, asked), strict=True):
        assert got.values == pytest.approx(alone(model, *trace), abs=1e-5)
    assert scorer.stats.encoded_tokens == len(prefixes(model, asked))
    assert [scores.encoded_tokens for scores in run(scorer, asked)] == [0] * len(asked)


def test_scores_do_not_depend_on_company_order_or_cache_by_a_bit():
    model, asked = prm(), traces()
    wanted = [run(PRMScorer(model, cache_tokens=0), [trace])[0].values for trace in asked]
    for cache_tokens, batch, seed in ((65536, 8192, 0), (0, 200, 1), (100, 64, 2)):
        scorer = PRMScorer(model, cache_tokens=cache_tokens, max_batch_tokens=batch)
        order = list(range(len(asked)))
        random.Random(seed).shuffle(order)
        first, second = order[:25], order[25:]
        got = dict(zip(first, run(scorer, [asked[n] for n in first]), strict=True))
        got |= dict(zip(second, run(scorer, [asked[n] for n in second]), strict=True))
        for n, values in enumerate(wanted):
            assert got[n].values == (values if EXACT else pytest.approx(values, abs=1e-6))


def test_step_by_step_encodes_only_what_is_new():
    model = prm()
    question, steps = TASK.problem("train", 0).question, TASK.problem("train", 0).solution.split("\n")
    scorer = PRMScorer(model)
    growing = [run(scorer, [(question, steps[: n + 1])])[0] for n in range(len(steps))]
    assert growing[-1].values == pytest.approx(alone(model, question, steps), abs=1e-5)
    for n, scores in enumerate(growing):
        values = growing[-1].values[: n + 1]
        assert scores.values == (values if EXACT else pytest.approx(values, abs=1e-6))
    assert [scores.encoded_tokens for scores in growing[1:]] == [len(step) + 1 for step in steps[1:]]
    siblings = run(scorer, [(question, [*steps[:2], f"h+{n}=A"]) for n in range(3)])
    assert [scores.encoded_tokens for scores in siblings] == [6, 4, 4]


def test_twins_that_wait_together_are_encoded_once():
    model, (trace, *_) = prm(), traces()
    got = run(PRMScorer(model), [trace] * 5)
    assert len({scores.values for scores in got}) == 1
    assert [scores.encoded_tokens > 0 for scores in got] == [True, False, False, False, False]


def test_the_same_ids_cut_into_other_steps():
    """A step that holds the tag gives the ids of two steps, with one score less."""
    model = prm()
    scorer = PRMScorer(model)
    for steps in (["a+1=2\nb+1=3"], ["a+1=2", "b+1=3"]):
        (got,) = run(scorer, [("a+1+1,1", steps)])
        assert got.values == pytest.approx(alone(model, "a+1+1,1", steps), abs=1e-5)


def test_no_steps_and_too_many():
    scorer = PRMScorer(prm())
    assert run(scorer, [("q", [])])[0].values == ()

    async def main():
        return await asyncio.gather(
            scorer.score("q", ["a"] * 100), scorer.score("q", ["a", "b"]), return_exceptions=True
        )

    long, good = asyncio.run(main())
    assert isinstance(long, ConfigError)
    assert str(long).startswith("score.steps: got '100 steps of 202 tokens with the question'; accepted: at most 160")
    assert len(good.values) == 2


def test_new_weights():
    model, asked = prm(), traces(5)
    scorer = PRMScorer(model)
    before = run(scorer, asked)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.2)
    scorer.update_weights()
    after = run(scorer, asked)
    for trace, got in zip(asked, after, strict=True):
        assert got.values == pytest.approx(alone(model, *trace), abs=1e-5)
    assert [scores.values for scores in after] != [scores.values for scores in before]


def test_callers_that_give_up_and_failures():
    model, asked = prm(), traces(4)
    scorer = PRMScorer(model)

    async def main():
        tasks = [asyncio.ensure_future(scorer.score(*trace)) for trace in asked]
        await asyncio.sleep(0)
        tasks[0].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[0], asyncio.CancelledError)
        return done[1:]

    for trace, got in zip(asked[1:], asyncio.run(main()), strict=True):
        assert got.values == pytest.approx(alone(model, *trace), abs=1e-5)
    weight = model.model.lm_head.weight
    model.model.lm_head.weight = torch.nn.Parameter(weight[:, :5])
    with pytest.raises(RuntimeError):
        run(scorer, asked)
    model.model.lm_head.weight = weight
    for trace, got in zip(asked, run(scorer, asked), strict=True):
        assert got.values == pytest.approx(alone(model, *trace), abs=1e-5)


@pytest.mark.parametrize("field", ["max_batch_tokens", "cache_tokens"])
def test_settings_are_checked(field):
    with pytest.raises(ConfigError, match=f"scorer.{field}: got -1"):
        PRMScorer(prm(), **{field: -1})
