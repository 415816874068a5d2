"""SearchEvaluation in real fits: what it logs, that it searches with the weights of the moment, disturbs nothing."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.search_evaluation import SearchEvaluation
from datamodules.batching import BatchConfig
from datamodules.sft import SFTDataModule
from datamodules.sources import SourceConfig
from datamodules.step_labels import StepLabelDataModule
from lightning_modules.optimizers import OptimizerConfig
from lightning_modules.prm import PRM
from lightning_modules.sft import SFT
from prmkit.engines import HFEngine
from prmkit.errors import ConfigError
from prmkit.evaluation.comparison import comparison_figures, levels_of, search_truth
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import get_step_format
from prmkit.models import LoraSpec, ModelSource, PRMModel, build_policy, load_policy, load_tokenizer, save_policy
from prmkit.records import SamplingParams
from prmkit.scoring import PRMScorer
from prmkit.search.methods import METHODS, make_method, make_params
from prmkit.search.runner import RunParams, Searcher, search_all
from prmkit.tasks import get_task

CONFIG = {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
CONFIG |= {"num_key_value_heads": 1, "intermediate_size": 16, "tie_word_embeddings": True, "initializer_range": 0.2}
SOURCE = ModelSource(config=CONFIG, tokenizer="accumulator")
DROPPING = ModelSource(config=CONFIG, tokenizer="accumulator", lora=LoraSpec(r=2, dropout=0.5))
FAST = OptimizerConfig(lr=1e-2, warmup_steps=0)
OPTIONS = {"min_ops": 2, "max_ops": 2}
STEPWISE = {"beam_search", "dvts", "rebase", "mcts", "rstar"}
SAMPLING = SamplingParams(max_tokens=16)
SEARCH = {"task_options": OPTIONS, "limit": 3, "sampling": SAMPLING, "seed": 5, "in_flight": 4}


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """A policy that has learned nothing."""
    folder = tmp_path_factory.mktemp("fixed") / "policy"
    tokenizer = load_tokenizer(SOURCE)
    save_policy(
        build_policy(SOURCE, tokenizer), tokenizer, BoundStepFormat(get_step_format("plain"), tokenizer), folder
    )
    return folder


@pytest.fixture
def labels(tmp_path) -> str:
    """Labelled solutions of the task, the second line of every other one wrong."""
    task, path = get_task("accumulator", **OPTIONS), tmp_path / "labels.jsonl"
    with path.open("w") as file:
        for number, problem in enumerate(task.problems("train", 8)):
            steps = problem.solution.split("\n")
            record = {"schema": 1, "problem_id": problem.id, "question": problem.question, "answer": problem.answer}
            record |= {"steps": steps, "values": [1.0, *[float(number % 2)] * (len(steps) - 1)], "source": "test"}
            record |= {"rollouts": [4] * len(steps), "policy": "x", "tree": None, "separator": "\n", "correct": None}
            file.write(json.dumps(record) + "\n")
    return str(path)


def sft_data(max_length=64) -> SFTDataModule:
    source = SourceConfig(kind="task", name="accumulator", split="train", count=8)
    return SFTDataModule([source], batch=BatchConfig(rows=2), max_length=max_length)


def fit(module, data, *callbacks: Callback, root: Path, logger=False, epochs=1, **options) -> Trainer:
    seed_everything(1)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=logger,
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, data)
    return trainer


class Modes(Callback):
    """Keeps the random state and the training modes that every batch begins with."""

    def __init__(self) -> None:
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.seen.append((torch.get_rng_state().sum().item(), [part.training for part in pl_module.modules()]))


def test_a_fit_is_the_same_to_the_last_bit_with_and_without(policy, as_prm, tmp_path):
    """With dropout, so that a random number drawn in between would change the weights."""
    modules, modes, trainers = [SFT(DROPPING, optimizer=FAST) for _ in range(2)], [Modes(), Modes()], []
    search = SearchEvaluation(
        {"best_of_n": {}, "beam_search": {"width": 2}}, [2], every_n_steps=2, prm=str(as_prm(policy)), **SEARCH
    )
    loggers = [CSVLogger(tmp_path, name="", version="csv"), TensorBoardLogger(tmp_path, name="", version="tb")]
    trainers.append(fit(modules[0], sft_data(), modes[0], root=tmp_path / "without"))
    trainers.append(fit(modules[1], sft_data(), modes[1], search, root=tmp_path / "with", logger=loggers))
    weights = [module.state_dict() for module in modules]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert modes[0].seen == modes[1].seen
    assert len(modes[0].seen) == 4

    files = sorted(path.name for path in (tmp_path / "with" / "search").iterdir())
    assert files == ["step=2.json", "step=2.png", "step=4.json", "step=4.png"]
    figures = json.loads((tmp_path / "with" / "search" / "step=4.json").read_text())["figures"]
    assert [(found["method"], found["budget"]) for found in figures["searches"]] == [
        ("best_of_n", 2),
        ("beam_search", 2),
    ]
    logged = {name: float(value) for name, value in trainers[1].callback_metrics.items() if name.startswith("search/")}
    assert logged["search/beam_search/2/generated_tokens"] == figures["searches"][1]["tokens"]["generated"] > 0
    assert {"search/best_of_n/2/pass_at_1", "search/best_of_n/2/majority", "search/best_of_n/2/oracle"} <= set(logged)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("search/best_of_n/2/majority")]
    assert [int(row["step"]) for row in rows] == [2, 4]
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [image.step for image in events.Images("search/accuracy")] == [2, 4]
    assert [value.step for value in events.Scalars("search/best_of_n/2/oracle")] == [2, 4]


def test_every_method_on_mathematics(tiny_qwen2, tiny_qwen2_prm, data_dir, tmp_path):
    """All methods, with a pair of Qwen2's shape and chat format, on prompts of MATH-500."""
    math = {"task": "math500", "data": str(data_dir / "math"), "limit": 2, "sampling": SamplingParams(max_tokens=10)}
    methods = {name: {"step_tokens": 4} if name in STEPWISE else {} for name in METHODS}
    search = SearchEvaluation(methods, [4], every_n_epochs=1, prm=str(tiny_qwen2_prm), headline="last_vote", **math)
    trainer = fit(SFT(ModelSource(path=str(tiny_qwen2)), optimizer=FAST), sft_data(512), search, root=tmp_path)
    searches = json.loads((tmp_path / "search" / "step=4.json").read_text())["figures"]["searches"]
    assert {entry["method"] for entry in searches} == set(METHODS)
    for entry in searches:
        assert entry["failed"] == 0
        assert 0 < entry["tokens"]["generated"] <= 4 * 10
        size = "" if entry["budget"] is None else f"/{entry['budget']}"
        assert f"search/{entry['method']}{size}/oracle" in trainer.callback_metrics


def test_wandb_offline_has_metrics_and_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(save_dir=tmp_path, project="test", offline=True)
    search = SearchEvaluation({"best_of_n": {}}, [2], every_n_epochs=1, **SEARCH)
    fit(SFT(SOURCE, optimizer=FAST), sft_data(), search, root=tmp_path, logger=logger)
    run = logger.experiment
    found = dict(run.summary)
    run.finish()
    wandb.teardown()  # what is written behind the process's back is written
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    written = json.loads((tmp_path / "search" / "step=4.json").read_text())["figures"]["searches"][0]
    assert found["search/best_of_n/2/majority"] == written["accuracy"]["majority"]["mean"]
    assert found["search/best_of_n/2/generated_tokens"] == written["tokens"]["generated"] > 0
    (history,) = folder.glob("*.wandb")
    assert b"search/best_of_n/2/generated_tokens" in history.read_bytes()
    (picture,) = (folder / "files" / "media" / "images" / "search").glob("accuracy_*.png")
    assert picture.read_bytes() == (tmp_path / "search" / "step=4.png").read_bytes()


def test_the_policy_of_the_moment_is_searched(tmp_path):
    """Adapters folded in: an engine on the exported policy finds the same."""
    module = SFT(DROPPING, optimizer=FAST)
    search = SearchEvaluation({"best_of_n": {}}, [3], every_n_epochs=1, **SEARCH)
    fit(module, sft_data(), search, root=tmp_path, epochs=2)
    module.export_pretrained(tmp_path / "policy")
    found = [json.loads((tmp_path / "search" / f"step={step}.json").read_text())["figures"] for step in (4, 8)]
    assert found[0] != found[1], "the weights have changed in between"
    task = get_task("accumulator", **OPTIONS)
    problems = task.problems("validation", 3)
    loaded = load_policy(tmp_path / "policy")
    params = make_params("best_of_n", {"n": 3, "sampling": SAMPLING, "seed": 5})
    engine = HFEngine(loaded.model, loaded.format)
    rows = search_all(
        problems, Searcher(make_method("best_of_n", params), engine, None, task.grader, "best_of_n", 3), RunParams()
    )
    assert json.loads(json.dumps(comparison_figures(rows, "product_vote", levels_of(rows, problems)))) == found[1]


def test_the_prm_of_the_moment_guides_a_fixed_policy(policy, labels, tmp_path):
    module = PRM(SOURCE, step_format="plain-head", optimizer=FAST)
    data = StepLabelDataModule([SourceConfig(path=labels)], batch=BatchConfig(rows=2), max_length=64)
    search = SearchEvaluation(
        {"best_of_n": {}}, [8], every_n_epochs=2, policy=str(policy), dirpath=str(tmp_path / "s"), **SEARCH
    )
    trainer = fit(module, data, search, root=tmp_path, epochs=2)
    assert {"search/best_of_n/8/oracle", "search/prm/step_accuracy"} <= set(trainer.callback_metrics)
    module.export_pretrained(tmp_path / "prm")
    task, loaded = get_task("accumulator", **OPTIONS), load_policy(policy)
    problems = task.problems("validation", 3)
    params = make_params("best_of_n", {"n": 8, "sampling": SAMPLING, "seed": 5})
    scorer = PRMScorer(PRMModel.from_pretrained(tmp_path / "prm"))
    searcher = Searcher(
        make_method("best_of_n", params), HFEngine(loaded.model, loaded.format), scorer, task.grader, "best_of_n", 8
    )
    rows = search_all(problems, searcher, RunParams())
    figures = comparison_figures(rows, "product_vote", levels_of(rows, problems))
    figures["prm"] = search_truth(rows, problems, task)
    (written,) = (tmp_path / "s").glob("*.json")
    assert written.name == "step=8.json"
    assert json.loads(written.read_text())["figures"] == json.loads(json.dumps(figures))


def test_accumulated_batches_are_one_step(tmp_path):
    search = SearchEvaluation({"cot": {}}, [1], every_n_steps=1, **SEARCH)
    fit(SFT(SOURCE, optimizer=FAST), sft_data(), search, root=tmp_path, accumulate_grad_batches=2)
    assert sorted(path.name for path in (tmp_path / "search").glob("*.json")) == ["step=1.json", "step=2.json"]
    resumed = SearchEvaluation({"cot": {}}, [1], every_n_steps=1, **SEARCH)
    resumed.load_state_dict(search.state_dict())
    assert resumed.state_dict() == {"last_step": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"search_evaluation\.every_n_steps: got None; accepted: a number, or null with every_n_epochs"),
        ({"every_n_steps": 1, "every_n_epochs": 1}, r"search_evaluation\.every_n_steps: got 1"),
        ({"every_n_epochs": 0}, r"search_evaluation\.every_n_epochs: got 0"),
        ({"every_n_steps": 1, "methods": {}}, r"search_evaluation\.methods: got \{\}"),
        ({"every_n_steps": 1, "methods": {"beam": {}}}, r"search\.method: got 'beam'"),
        ({"every_n_steps": 1, "methods": {"mcts": {"depth": 3}}}, r"search\.depth: got 3"),
        ({"every_n_steps": 1, "budgets": [0]}, "budgets: got"),
        ({"every_n_steps": 1, "task": "acumulator"}, r"task\.name: got 'acumulator'"),
    ],
)
def test_mistakes_are_found_on_construction(options, message):
    with pytest.raises(ConfigError, match=message):
        SearchEvaluation(**{"methods": {"best_of_n": {}}, "budgets": [2], **options})


def test_a_fixed_model_is_asked_for_before_the_fit(tmp_path):
    guided = SearchEvaluation({"dvts": {}}, [4], every_n_steps=1, **SEARCH)
    with pytest.raises(ConfigError, match=r"search_evaluation\.prm: got None; .* dvts is guided by one"):
        fit(SFT(SOURCE, optimizer=FAST), sft_data(), guided, root=tmp_path)
    voting = SearchEvaluation({"best_of_n": {}}, [4], every_n_steps=1, **SEARCH)
    with pytest.raises(ConfigError, match=r"search_evaluation\.policy: got None; .* a PRM is being trained"):
        fit(PRM(SOURCE, step_format="plain-head"), None, voting, root=tmp_path)


@pytest.mark.slow
def test_two_ranks(tmp_path):
    """The first one searches, the other waits; both have the metrics, and checkpoints can be chosen by them."""

    class Keep(Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("search/")}
            (tmp_path / f"rank{trainer.global_rank}.json").write_text(json.dumps(metrics))

    search = SearchEvaluation({"best_of_n": {}}, [2], every_n_steps=1, **SEARCH)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_fork",
        max_epochs=1,
        callbacks=[search, Keep()],
        logger=False,
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(SFT(SOURCE, optimizer=FAST), sft_data())
    one, other = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert one == other
    assert one["search/best_of_n/2/generated_tokens"] > 0
    assert len(list((tmp_path / "search").glob("*.json"))) == 2


def test_it_is_made_from_yaml():
    from jsonargparse import ArgumentParser

    text = """
    class_path: callbacks.search_evaluation.SearchEvaluation
    init_args:
      methods: {best_of_n: {}, beam_search: {width: 2, aggregation: product}}
      budgets: [4, 16]
      every_n_epochs: 1
      prm: runs/accumulator/prm/model
      sampling: {max_tokens: 64}
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callback", type=Callback)
    made = parser.instantiate_classes(parser.parse_object({"callback": yaml.safe_load(text)})).callback
    assert [(search.name, search.budget) for search in made.planned] == [
        (name, budget) for name in ("best_of_n", "beam_search") for budget in (4, 16)
    ]
    assert (made.planned[3].params.width, made.planned[3].params.aggregation) == (2, "product")
    assert {search.params.sampling.max_tokens for search in made.planned} == {64}
