"""Experience as tensors, its micro-batches, the stream of prompts, and what the data module refuses."""

from dataclasses import replace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from datamodules.experience import EvaluationConfig, ExperienceDataModule, IterationConfig
from datamodules.experience_loader import Collected, ExperienceLoader, Schedule
from datamodules.experience_records import empty_batch, make_experience
from datamodules.experience_rollouts import PRMSource, check_prompts
from datamodules.prompts import PromptConfig, PromptStream
from lightning_modules.grpo import GRPO
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.policy_actor import KLPenalty
from lightning_modules.ppo import PPO
from prmkit.advantages import GroupConfig
from prmkit.errors import ConfigError, DataError, StepFormatError
from prmkit.models import LoraSpec, ModelSource, PRMModel, build_prm, load_tokenizer
from prmkit.rewards import LengthConfig, OutcomeConfig, ProcessConfig, Reward, RewardsConfig
from prmkit.rollouts import DynamicSampling, Rollout
from prmkit.steps import get_step_format
from prmkit.types import Problem, Step, Trace

CONFIG = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 16, "tie_word_embeddings": True, "initializer_range": 0.1}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
LENGTH = RewardsConfig(OutcomeConfig(weight=0.0, truncated="grade"), length=LengthConfig(12, 11))
PAD = 9


def rollout(group: int, prompt: int, steps: tuple[int, ...], reward: Reward | None) -> Rollout:
    """A solution with steps of these many tokens, numbered from 10; steps of 0 tokens make one without steps."""
    token = iter(range(10, 99))
    made = tuple(Step("x", tuple(next(token) for _ in range(n))) for n in steps if n)
    ids = tuple(t for step in made for t in step.token_ids) or (2,)
    logprobs = tuple(-0.1 * (n + 1) for n in range(len(ids)))
    trace = Trace("p", made, "stop")
    return Rollout(Problem("p", "q", "1"), group, tuple(range(prompt)), ids, logprobs, trace, reward)


ROWS = [
    rollout(4, 3, (2, 1), Reward(1.0, (0.25, 0.5))),
    rollout(4, 3, (1,), Reward(0.0, (0.75,), (-0.1,))),
    rollout(6, 2, (0,), Reward(-2.0)),
    rollout(6, 2, (1, 1, 2), None),
]


def test_tensors_of_rollouts():
    made = make_experience(ROWS, PAD)
    assert made.input_ids.tolist() == [
        [0, 1, 2, 10, 11, 12],
        [0, 1, 2, 10, PAD, PAD],
        [0, 1, 2, PAD, PAD, PAD],
        [0, 1, 10, 11, 12, 13],
    ]
    assert made.attention_mask.sum(1).tolist() == [6, 4, 3, 6]
    assert made.action_mask.int().tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [0] * 6]
    assert made.index.tolist()[0] == [-1, -1, -1, 0, 0, 1]
    assert made.generator_logprobs[0].tolist() == pytest.approx([0, 0, 0, -0.1, -0.2, -0.3])
    assert made.step_rewards.tolist() == [[0.25, 0.5, 0.0], [0.75, 0.0, 0.0], [0.0] * 3, [0.0] * 3]
    assert made.step_mask.sum(1).tolist() == [2, 1, 0, 0]
    assert made.token_rewards[0].tolist() == [0, 0, 0, 0, 0.25, 1.5]
    assert made.token_rewards[1].tolist() == pytest.approx([0, 0, 0, 0.65, 0, 0])
    assert made.token_rewards[2].tolist() == [0, 0, -2, 0, 0, 0]  # no steps: what there is was earned at its last token
    assert made.trace_rewards.tolist() == pytest.approx([1.0, -0.1, -2.0, 0.0])
    assert made.total_rewards.tolist() == pytest.approx([1.75, 0.65, -2.0, 0.0])
    assert made.groups.tolist() == [4, 4, 6, 6]
    assert made.row_mask.tolist() == [True, True, True, False]


def test_micro_batches_are_cut_to_their_longest_row_and_know_their_whole_groups():
    made = make_experience(ROWS, PAD).filled({"advantages": torch.arange(24.0).view(4, 6)})
    batch = made.batch([1, 2])
    assert batch.input_ids.tolist() == [[0, 1, 2, 10], [0, 1, 2, PAD]]
    assert batch.advantages.tolist() == [[6, 7, 8, 9], [12, 13, 14, 15]]
    assert batch.group_tokens.tolist() == [4, 1]
    assert batch.group_rows.tolist() == [2, 1]
    assert batch.old_logprobs is None
    filler = empty_batch(made, PAD)
    assert not filler.action_mask.any()


def loader(rows: int, updates: int = 2, passes: int = 2, accumulate: int = 2, missing: int = 0) -> ExperienceLoader:
    made = [rollout(row // 2, 2 + row % 3, (1 + row % 2,), Reward(1.0)) for row in range(rows - missing)]
    experience = make_experience(made, PAD).filled({"advantages": torch.zeros(rows - missing, 7)})
    schedule = Schedule(rows, updates, passes, accumulate, seed=3)
    return ExperienceLoader(
        lambda iteration: Collected(experience, {"rollout/iteration": float(iteration)}),
        lambda batch: int(batch.action_mask.sum()),
        schedule,
        PAD,
    )


def rows_of(batch) -> set[int]:
    return {int(name.split("/")[1]) for name in batch.ids if name}


def test_every_pass_takes_every_row_once_and_steps_take_whole_groups():
    made = loader(8)
    batches = list(made)
    assert len(batches) == len(made) == 8
    for number in range(2):
        taken = [rows_of(batch) for batch in batches[4 * number : 4 * number + 4]]
        assert sorted(row for rows in taken for row in rows) == list(range(8))
        for step in (taken[0] | taken[1], taken[2] | taken[3]):
            assert step in ({0, 1, 2, 3}, {4, 5, 6, 7})
    for one, other in zip(batches[::2], batches[1::2], strict=True):
        assert one.window_count == other.window_count == int(one.action_mask.sum() + other.action_mask.sum())
    assert [batch.report for batch in batches] == [{"rollout/iteration": 0.0}] + [None] * 7
    assert next(iter(made)).report == {"rollout/iteration": 1.0}


def test_what_a_step_holds_does_not_depend_on_its_micro_batches():
    for accumulate in (1, 2, 4):
        batches = list(loader(8, accumulate=accumulate))
        steps = [batches[n : n + accumulate] for n in range(0, len(batches), accumulate)]
        assert [set().union(*map(rows_of, step)) for step in steps] == [
            rows_of(batch) for batch in loader(8, accumulate=1)
        ]


def test_rows_without_advantage_are_counted_and_left_out():
    made = [rollout(row // 2, 2, (1 + row % 2,), Reward(1.0)) for row in range(8)]
    advantages = torch.zeros(8, 4)
    advantages[[1, 4]] = 1.0
    experience = make_experience(made, PAD).filled({"advantages": advantages})
    whole, short = (
        list(ExperienceLoader(lambda _: Collected(experience, {}), lambda batch: int(batch.action_mask.sum()),
                              Schedule(8, 2, 1, 2, 0), PAD, skip))
        for skip in (False, True)
    )  # fmt: skip
    assert [sorted(rows_of(batch)) for batch in short] == [[1], [], [4], []]
    assert [batch.window_count for batch in short] == [batch.window_count for batch in whole] == [6, 6, 6, 6]
    assert {row for batch in whole for row in rows_of(batch)} == set(range(8))


def test_rows_that_are_not_there_leave_fillers():
    batches = list(loader(8, passes=1, accumulate=4, missing=4))
    assert [rows_of(batch) == set() for batch in batches] == [False] * 4 + [True] * 4
    assert [batch.window_count for batch in batches[4:]] == [0] * 4


def test_prompts_come_once_a_lap_in_an_order_of_the_seed():
    problems = [Problem(f"p{n}", "q", "1") for n in range(7)]
    stream = PromptStream(problems, 0)
    laps = [[stream[7 * lap + n].id for n in range(7)] for lap in range(3)]
    assert all(sorted(lap) == [problem.id for problem in problems] for lap in laps)
    assert len({tuple(lap) for lap in laps}) == 3
    assert [PromptStream(problems, 0)[n].id for n in (13, 2, 20)] == [laps[1][6], laps[0][2], laps[2][6]]
    assert PromptStream(problems, 1)[0].id != laps[0][0] or PromptStream(problems, 1)[1].id != laps[0][1]


def test_long_prompts_are_left_out_and_counted(caplog):
    problems = [Problem(f"p{n}", "q" * n, "1") for n in range(1, 5)]
    kept = check_prompts(problems, lambda problem: len(problem.question) <= 2, 2)
    assert [problem.id for problem in kept] == ["p1", "p2"]
    assert "2 of 4 left out" in caplog.text
    with pytest.raises(DataError, match="all 4 prompts are longer than 0 ids"):
        check_prompts(problems, lambda problem: False, 0)


# -- under a trainer ---------------------------------------------------------------------------------------------


def grpo(source: ModelSource = SOURCE, size: int = 4, **changes) -> GRPO:
    return GRPO(source, optimizer=OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0),
                advantage=GroupConfig(size), **changes)  # fmt: skip


def data(**changes) -> ExperienceDataModule:
    values = {"iteration": IterationConfig(4), "max_tokens": 12, "rewards": LENGTH}
    return ExperienceDataModule(
        PromptConfig(count=8), PromptConfig(split="validation", count=5), **{**values, **changes}
    )


def trainer(**changes) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{**quiet, "enable_checkpointing": False, "max_epochs": 1, "num_sanity_val_steps": 0, **changes})


def fit(module: LightningModule, source: ExperienceDataModule, **changes) -> dict[str, float]:
    run = trainer(**changes)
    run.fit(module, source)
    return {name: float(value) for name, value in run.callback_metrics.items()}


@pytest.fixture
def prm(tmp_path):
    """A folder with a PRM of random weights for the accumulator's steps."""

    def make(step_format: str | dict = "plain", seed: int = 0) -> str:
        source, folder = replace(SOURCE, seed=seed), tmp_path / f"prm-{seed}"
        bound = get_step_format(step_format).bind(load_tokenizer(source))
        PRMModel(build_prm(source, bound).model, bound).save_pretrained(folder)
        return str(folder)

    return make


def test_a_prm_scores_rollouts(prm):
    rewards = RewardsConfig(OutcomeConfig(), ProcessConfig(form="min"))
    source = data(rewards=rewards, prm=PRMSource(prm()))
    figures = fit(grpo(), source)
    assert 0.0 < figures["rollout/score"] < 1.0
    assert figures["rollout/score_gap"] == pytest.approx(figures["rollout/score"] - figures["rollout/outcome"])
    assert {len(r.trace.scores.values) - len(r.trace.steps) for r in source.rollouts if r.trace.steps} == {0}
    assert figures["rollout/no_signal"] == 0.0  # a random PRM tells all solutions apart


@pytest.mark.parametrize(("pessimism", "combine"), [("min", min), ("mean", lambda scores: sum(scores) / 2)])
def test_several_prms_score_rollouts_together(prm, pessimism, combine):
    """The first rollouts are the same whoever judges them."""
    paths = [prm(), prm(seed=1)]
    scores = []
    for path in (*paths, paths):
        rewards = RewardsConfig(process=ProcessConfig())
        source = data(rewards=rewards, prm=PRMSource(path, pessimism=pessimism))
        fit(grpo(), source)
        scores.append([r.trace.scores.values for r in source.rollouts if r.trace.steps])
    one, other, together = scores
    assert one != other
    for *singles, joint in zip(one, other, together, strict=True):
        assert joint == pytest.approx([combine(pair) for pair in zip(*singles, strict=True)])


def test_dynamic_sampling_keeps_groups_with_signal_and_warns_when_there_are_too_few(caplog):
    figures = fit(grpo(), data(dynamic_sampling=DynamicSampling("length", oversample=1.0, max_waves=5)))
    assert figures["rollout/no_signal"] == 0.0
    for module in (grpo(kl=KLPenalty(0.1)), PPO(SOURCE, samples=4)):
        everything_wrong = data(dynamic_sampling=DynamicSampling(), rewards=RewardsConfig())
        assert fit(module, everything_wrong)["rollout/dropped"] == 1.0
    assert "0 of 4 groups have a signal after 4 waves" in caplog.text


def test_validation_counts_right_answers_and_prompts_that_are_too_long_as_wrong():
    (figures,) = trainer().validate(grpo(), data(), verbose=False)
    assert figures["val/pass_at_1"] == 0.0
    assert 0.0 < figures["val/length"] <= 12.0
    short = replace(SOURCE, config={**CONFIG, "max_position_embeddings": 30})
    sampled = data(evaluation=EvaluationConfig(temperature=1.0, samples=3))
    (figures,) = trainer().validate(grpo(short), sampled, verbose=False)
    assert figures["val/pass_at_1"] == 0.0


def test_adapters_need_no_second_model_for_the_reference():
    source = replace(SOURCE, lora=LoraSpec(r=2))
    module = grpo(source, kl=KLPenalty(0.1))
    figures = fit(module, data(iteration=IterationConfig(4, 2, 1)))
    assert figures["train/kl"] > 0.0  # of the second step; at the first the adapters are 0
    assert module.reference._frozen == ()
    assert all(parameter.requires_grad for name, parameter in module.named_parameters() if "lora" in name)


def test_without_a_penalty_there_is_no_reference_in_memory():
    module = grpo()
    figures = fit(module, data())
    assert "train/kl" not in figures
    assert module.reference._frozen == ()


class Never(GRPO):
    """No rollout may be asked for."""

    def score_tokens(self, *arguments):
        raise AssertionError("rollouts were made")


def refused(error: type[Exception], match: str, source: ExperienceDataModule, module: GRPO | None = None, **changes):
    with pytest.raises(error, match=match):
        fit(module or Never(SOURCE, advantage=GroupConfig(4)), source, **changes)
    assert source.rollouts == []


def test_bad_input_is_refused_before_any_rollout(prm, tmp_path):
    with pytest.raises(ConfigError, match=r"advantage.size: got 1; accepted: an integer of at least 2"):
        grpo(size=1)
    with pytest.raises(ConfigError, match=r"data.prm: got None; accepted: a PRM, for data.rewards.process"):
        data(rewards=RewardsConfig(process=ProcessConfig()))
    with pytest.raises(DataError, match=r"no/such/reference"):
        grpo(reference=ModelSource(path="no/such/reference"))
    small = replace(SOURCE, config={**CONFIG, "max_position_embeddings": 64})
    for tokens, error, message in (
        (64, ConfigError, r"data.max_tokens: got 64; accepted: less than the model's context of 64"),
        (61, DataError, r"data.prompts: all 8 prompts are longer than 3 ids"),
    ):
        refused(error, message, data(max_tokens=tokens), Never(small, advantage=GroupConfig(4)))
    refused(
        ConfigError, r"data.iteration.prompts: got 4; accepted: a multiple of 3", data(iteration=IterationConfig(4, 3))
    )
    refused(ConfigError, r"trainer.limit_train_batches", data(), limit_train_batches=1)
    refused(DataError, r"no/such/prm", data(prm=PRMSource("no/such/prm")))
    for settings, message in (({"path": []}, r"data.prm.path"), ({"path": "p", "pessimism": "max"}, r"data.prm.pess")):
        with pytest.raises(ConfigError, match=message):
            PRMSource(**settings)
    refused(ConfigError, r"task.accumulator.limit: got None", ExperienceDataModule(PromptConfig()))


def test_a_prm_of_other_steps_is_refused(prm):
    path = prm({"base": "plain", "policy": {"separator": "=", "template": "{question}\n"}})
    source = data(rewards=RewardsConfig(process=ProcessConfig()), prm=PRMSource(path))
    refused(StepFormatError, r"ends steps with '=', the policy's \('plain'\) with '\\n'", source)


def test_a_reference_of_another_vocabulary_is_refused(tmp_path):
    other = ModelSource(config={**CONFIG, "vocab_size": 999}, tokenizer="accumulator")
    refused(ConfigError, r"model.reference: got '999 tokens'", data(),
            Never(SOURCE, advantage=GroupConfig(4), kl=KLPenalty(0.1), reference=other))  # fmt: skip


def test_a_module_that_optimises_no_policy_is_refused():
    from lightning_modules.sft import SFT

    refused(ConfigError, r"model: got 'SFT'; accepted: a module that optimises a policy", data(), SFT(SOURCE))


def test_the_sampling_of_an_iteration_is_told_prompt_by_prompt():
    source, told = data(), []
    source.watch = lambda done, total: told.append((done, total))
    fit(grpo(), source, limit_val_batches=0)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
