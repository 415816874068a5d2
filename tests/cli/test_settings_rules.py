"""The rules of settings, over every shipped config, every class in them and every option of every command."""

import contextlib
import copy
import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from prmkit.cli import main
from prmkit.cli.config_tree import read_command_line
from prmkit.cli.config_values import from_text, members
from prmkit.cli.fit_settings import _signatures, config_text, normalise, read_fit
from prmkit.cli.parsing import _class_keys
from prmkit.cli.signatures import ANYTHING, ListOf, Plain, Record, Signature, exists, signature
from prmkit.cli.yaml_text import load_config, load_value
from prmkit.errors import PrmkitError
from prmkit.resources import config_root, shipped_configs

FIT_JOBS = ("sft", "prm", "grpo", "ppo", "dpo")
FIT_CONFIGS = [name for job in FIT_JOBS for name in shipped_configs(job)]
NULL = Plain("null")


def shipped(name: str) -> Path:
    return config_root() / Path(name).relative_to("configs")


def fit(*argv: str) -> dict:
    return read_fit(list(argv), "fit").tree


def classes_of(node) -> set[str]:
    """Every class_path in a tree."""
    if isinstance(node, dict):
        here = {node["class_path"]} if isinstance(node.get("class_path"), str) else set()
        return here.union(*map(classes_of, node.values())) if node else here
    return set().union(*map(classes_of, node)) if isinstance(node, list) and node else set()


CLASSES = sorted(set().union(*(classes_of(yaml.safe_load(shipped(name).read_text())) for name in shipped_configs())))


# -- signatures, against the parser that imports ----------------------------------------------------------------------


@pytest.mark.parametrize("path", [*CLASSES, "lightning.pytorch.callbacks.EarlyStopping"])
def test_a_signature_from_source_is_that_of_the_class(path):
    found = signature(path)
    assert found is not None
    imported = {key.partition(".")[0] for key in _class_keys(path)}
    assert imported <= set(found.settings) or found.open
    assert set(found.settings) - imported <= {"kwargs"} or found.open


def test_the_trainers_signature_is_lightnings():
    assert set(_class_keys("lightning.pytorch.Trainer")) == set(_signatures()[1]["trainer"].settings)


def test_exists():
    assert exists("lightning_modules.prm.PRM")
    assert exists("lightning_modules.prm.PMR") is False
    assert exists("no_such_package.X") is None


# -- text on the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["2024-11-30", "{epoch}-{step}", "007", "1_000", "on", "1e3", "a: b", "[x", "'q'"])
def test_a_text_setting_takes_any_text(text):
    name = "configs/prm/accumulator.yaml"
    argv = ["--config", str(shipped(name)), "--trainer.callbacks.0.init_args.filename", text]
    assert fit(*argv)["trainer"]["callbacks"][0]["init_args"]["filename"] == text
    argv[-2] = "--trainer.callbacks.0.filename"
    assert fit(*argv)["trainer"]["callbacks"][0]["init_args"]["filename"] == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1_000", 1000),
        ("true", True),
        ("2024-11-30", "2024-11-30"),
        ("null", None),
        ("[1, b]", [1, "b"]),
    ],
)
def test_values_of_other_settings_are_yaml(text, value):
    assert load_value(text) == value
    assert from_text(text, ANYTHING) == value


def optional_keys(kind, prefix: str, node) -> list[str]:
    """Every dotted key below a kind that takes null, as far as the classes of a config lead."""
    found = []
    accepted = members(kind)
    if NULL in accepted:
        found.append(prefix)
    record = next((member for member in accepted if isinstance(member, Record)), None)
    if record is not None and (len(accepted) == 1 or isinstance(node, dict)):
        inner = _signatures()[1].get(record.path) or signature(record.path)
        node = node if isinstance(node, dict) else {}
        for name, setting in inner.settings.items():
            found += optional_keys(setting.kind, f"{prefix}.{name}", node.get(name))
    elif isinstance(node, dict) and "class_path" in node:
        inner = signature(node["class_path"])
        for name, setting in (inner.settings if inner else {}).items():
            found += optional_keys(setting.kind, f"{prefix}.{name}", (node.get("init_args") or {}).get(name))
    elif isinstance(node, list):
        item = next((member.item for member in accepted if isinstance(member, ListOf)), ANYTHING)
        for index, entry in enumerate(node):
            found += optional_keys(item, f"{prefix}.{index}", entry)
    return found


def enter(tree, key: str):
    for part in key.split("."):
        if isinstance(tree, dict) and part not in tree and "init_args" in tree:
            tree = tree["init_args"]
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    return tree


@pytest.mark.parametrize("name", FIT_CONFIGS)
def test_every_optional_key_of_a_config_takes_null_from_the_command_line(name):
    top, _ = _signatures()
    tree = load_config(shipped(name))
    keys = [
        key for part in ("trainer", "model", "data") for key in optional_keys(top.settings[part].kind, part, tree[part])
    ]
    assert len(keys) > 30
    for number, key in enumerate(keys):
        argument = ([f"--{key}", "null"], [f"--{key}=null"], [f"--{key}", "~"])[number % 3]
        assert enter(fit("--config", str(shipped(name)), *argument), key) is None, key


@pytest.mark.parametrize("name", FIT_CONFIGS)
def test_a_null_is_null_for_the_parser_that_builds(name, tmp_path, monkeypatch, capsys):
    """Some of them at once, through the whole of `prm fit`."""
    monkeypatch.chdir(tmp_path)
    tree = load_config(shipped(name))["model"]["init_args"]
    keys = ["trainer.max_time", "model.optimizer.warmup_steps", "model.step_format"]
    keys += ["model.source.config"] if "path" in tree["source"] else ["model.source.path"]
    argv = [part for key in keys for part in (f"--{key}", "null")]
    assert main(["fit", "--config", name, *argv, "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert [enter(printed, key) for key in keys] == [None] * len(keys)


# -- files ------------------------------------------------------------------------------------------------------------


def two(tmp_path, first: str, second: str, *argv: str):
    (tmp_path / "a.yaml").write_text(first)
    (tmp_path / "b.yaml").write_text(second)
    _, schema = _signatures()
    settings = dict(_signatures()[0].settings)
    files = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]
    return read_command_line([*files, *argv], Signature("", settings), schema)


DATA = """
data:
  class_path: datamodules.step_labels.StepLabelDataModule
  init_args:
    train: [{path: a.jsonl, offset: 150}]
    val: [{path: a.jsonl, count: 150, kind: jsonl}]
"""


@pytest.mark.parametrize("way", ["file", "argument"])
def test_a_list_replaces_a_list_whole(tmp_path, way):
    new = "{train: [{path: mine.jsonl}], val: [{path: mine.jsonl}]}"
    if way == "file":
        line = two(tmp_path, DATA, f"data: {{init_args: {new}}}")
        assert [text.partition(";")[0] for text in line.said] == [
            f"{tmp_path}/b.yaml: data.init_args.{name} replaces that of {tmp_path}/a.yaml (a.jsonl)"
            for name in ("train", "val")
        ]
    else:
        argv = ["--data.train", "[{path: mine.jsonl}]", "--data.val=[{path: mine.jsonl}]"]
        line = two(tmp_path, DATA, "seed_everything: 1", *argv)
    assert line.tree["data"]["init_args"] == {"train": [{"path": "mine.jsonl"}], "val": [{"path": "mine.jsonl"}]}


def test_no_list_item_inherits_through_the_whole_of_fit(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: {init_args: {train: [{path: x.jsonl}], val: [{path: y.jsonl}]}}")
    name = "configs/prm/accumulator.yaml"
    assert main(["fit", "--config", name, "--config", "mine.yaml", "--print_config"]) == 0
    output = capsys.readouterr()
    data = yaml.safe_load(output.out)["data"]["init_args"]
    assert (data["train"][0]["offset"], data["val"][0]["count"]) == (0, None)
    assert "mine.yaml: data.init_args.train replaces that of" in output.err


CALLBACKS = """
trainer:
  callbacks:
    - {class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: x}}
    - {class_path: callbacks.export.ExportPretrained, init_args: {dirpath: y}}
"""
STOP = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: m}}"


def names(line) -> list[str]:
    return [item["class_path"].rpartition(".")[2] for item in line.tree["trainer"]["callbacks"]]


def test_lists_are_added_to(tmp_path):
    added = two(tmp_path, CALLBACKS, f"trainer: {{callbacks+: [{STOP}]}}")
    assert (names(added), added.said) == (["ModelCheckpoint", "ExportPretrained", "EarlyStopping"], [])
    replaced = two(tmp_path, CALLBACKS, f"trainer: {{callbacks: [{STOP}]}}")
    assert names(replaced) == ["EarlyStopping"]
    assert "(ModelCheckpoint, ExportPretrained); to add to it, write `callbacks+:`" in replaced.said[0]
    kind = "lightning.pytorch.callbacks.EarlyStopping"
    argv = [f"--trainer.callbacks+={kind}", "--trainer.callbacks.monitor=a", "--trainer.callbacks+", STOP]
    line = two(tmp_path, CALLBACKS, "seed_everything: 1", *argv)
    assert names(line)[2:] == ["EarlyStopping", "EarlyStopping"]
    assert [item["init_args"]["monitor"] for item in line.tree["trainer"]["callbacks"][2:]] == ["a", "m"]
    with pytest.raises(
        PrmkitError, match=r"trainer\.callbacks is a list of 2; name the item .*--trainer\.callbacks\.0\.dirpath"
    ):
        two(tmp_path, CALLBACKS, "seed_everything: 1", "--trainer.callbacks.dirpath", "z")


def test_a_free_mapping_replaces_and_one_key_of_it_can_be_set(tmp_path):
    first = "model: {class_path: lightning_modules.sft.SFT, init_args: {source: {config: {model_type: llama, x: 1}}}}"
    second = "model: {init_args: {source: {config: {model_type: qwen2}}}}"
    line = two(tmp_path, first, second, "--model.source.config.y", "2")
    assert line.tree["model"]["init_args"]["source"] == {"config": {"model_type": "qwen2", "y": 2}}
    assert "model.init_args.source.config replaces" in line.said[0]
    whole = two(tmp_path, first, "seed_everything: 1", "--model.source.config={model_type: phi}")
    assert whole.tree["model"]["init_args"]["source"]["config"] == {"model_type": "phi"}


def test_a_number_gives_way_to_the_settings_that_the_setting_takes_too(tmp_path):
    at = "model: {class_path: lightning_modules.grpo.GRPO, init_args: {source: {path: p}, process_weight: %s}}"

    def weight(second: str, *argv: str):
        return two(tmp_path, at % 0.3, at % second, *argv).tree["model"]["init_args"]["process_weight"]

    dotted = ("--model.process_weight.follow", "silent", "--model.process_weight.end", "0.1")
    assert weight("1", *dotted) == {"follow": "silent", "end": 0.1}
    assert weight("{follow: silent}", "--model.process_weight", "0.3") == 0.3
    with pytest.raises(PrmkitError, match=r"process_weight.follow: not given; accepted: linear"):
        weight("1", *dotted[2:])
    with pytest.raises(PrmkitError, match="holds no settings"):
        weight("'${seed_everything}'", *dotted)


def test_another_class_keeps_what_it_has_and_says_what_goes(tmp_path):
    logger = "lightning.pytorch.loggers"
    first = (
        f"trainer: {{logger: {{class_path: {logger}.TensorBoardLogger, init_args: {{save_dir: x, log_graph: true}}}}}}"
    )
    line = two(tmp_path, first, f"trainer: {{logger: {{class_path: {logger}.CSVLogger}}}}")
    assert line.tree["trainer"]["logger"] == {"class_path": f"{logger}.CSVLogger", "init_args": {"save_dir": "x"}}
    assert "has no log_graph" in line.said[0]


@pytest.mark.parametrize("name", shipped_configs())
def test_a_key_twice_is_an_error_with_both_lines(name, tmp_path):
    text = shipped(name).read_text()
    first = next(line for line in text.splitlines() if line and not line.startswith("#"))
    number = text.splitlines().index(first) + 1
    key = first.partition(":")[0]
    (tmp_path / "twice.yaml").write_text(f"{text}\n{key}: 1\n")
    last = len(text.splitlines()) + 2
    with pytest.raises(
        PrmkitError, match=rf"twice\.yaml:{last}: .*'{key}' is given twice, in lines {number} and {last}"
    ):
        load_config(tmp_path / "twice.yaml")


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: [", "a: 1\n b: 2", "{a: 1}: 2", "\x00", "x: " + "9" * 5000, "[" * 20000]
)
def test_what_is_no_config_is_one_error_with_the_file(text, tmp_path):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(PrmkitError, match=r"bad\.yaml") as error:
        load_config(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_aliases_and_merge_keys_are_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1, y: [1]}\nb: {<<: *a, x: 2}\nc: *a\n")
    assert load_config(tmp_path / "a.yaml") == {
        "a": {"x": 1, "y": [1]},
        "b": {"x": 2, "y": [1]},
        "c": {"x": 1, "y": [1]},
    }
    trainer = "trainer: {default_root_dir: &r runs/x}\nckpt_path: *r\n"
    assert two(tmp_path, trainer, "trainer: {default_root_dir: y}").tree["ckpt_path"] == "runs/x"


def test_the_command_line_comes_last_wherever_it_stands(tmp_path):
    (tmp_path / "a.yaml").write_text(DATA + "seed_everything: 1")
    top, schema = _signatures()
    for argv in (["--seed_everything", "7", "--config", "a"], ["--config", "a", "--seed_everything=7"]):
        argv = [str(tmp_path / "a.yaml") if part == "a" else part for part in argv]
        assert read_command_line(argv, top, schema).tree["seed_everything"] == 7


# -- printed and saved configs ----------------------------------------------------------------------------------------


def values(node, where=""):
    if isinstance(node, dict):
        return {k: v for key, value in node.items() for k, v in values(value, f"{where}.{key}").items()}
    if isinstance(node, list):
        return {k: v for i, value in enumerate(node) for k, v in values(value, f"{where}.{i}").items()}
    return {where: node}


@pytest.mark.parametrize("name", FIT_CONFIGS)
def test_a_printed_config_keeps_its_interpolations(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    raw = load_config(shipped(name))
    assert main(["fit", "--print_config", "--config", name]) == 0  # before the file, too
    text = capsys.readouterr().out
    printed = yaml.safe_load(text)
    references = {key: value for key, value in values(raw).items() if "${" in str(value)}
    assert references
    assert references.items() <= values(printed).items()
    Path("printed.yaml").write_text(text)
    assert main(["fit", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == text
    moved = ["--seed_everything", "41", "--trainer.default_root_dir", "elsewhere"]
    assert main(["fit", "--config", "printed.yaml", *moved, "--print_config"]) == 0
    config = OmegaConf.to_container(OmegaConf.create(yaml.safe_load(capsys.readouterr().out)), resolve=True)
    assert config["model"]["init_args"]["source"]["seed"] == config["data"]["init_args"]["seed"] == 41
    assert f"runs/{Path(name).stem}/{Path(name).parent.name}" not in str(config)


def test_paths_made_by_interpolation_do_not_need_the_folder_that_they_pass_through():
    raw = {"a": "${b}/../sft", "c": ["${b}/../x", "y/../z"], "u": "s3://${b}/../x"}
    resolved = {"a": "runs/prm/../sft", "c": ["runs/prm/../x", "y/../z"], "u": "s3://runs/prm/../x"}
    assert normalise(copy.deepcopy(resolved), raw) == {**resolved, "a": "runs/sft", "c": ["runs/x", "y/../z"]}
    assert yaml.safe_load(config_text(resolved, raw)) == {**raw, "c": ["${b}/../x", "y/../z"]}


@pytest.mark.parametrize("name", FIT_CONFIGS)
def test_no_config_reads_a_path_with_dots_within(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from prmkit.cli.trainer_cli import _ParserOnly

    config = _ParserOnly("fit", read_fit(["--config", str(shipped(name))], "fit")).config
    assert "/../" not in str(config)


# -- a mistake is answered at once ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mistake",
    [
        ["--trainer.max_epoch=9"],
        ["--model.optimizer.lrr", "1"],
        ["--model.optimizer.lr", "fast"],
        ["--data.val", "null"],
        ["--data.train.0.pth", "x"],
        ["--trainer.callbacks.9.monitor", "x"],
        ["--model.loss", "hinge"],
        ["--model.class_path", "lightning_modules.prm.PMR"],
        [],  # the policy that it begins with is not there
        ["--model.source.path", "./nowhere"],
        ["--data.train.0.path", "no-such-file.jsonl"],
        ["--config", "configs/grpo/quick.yaml", "--model.process_weight", "much"],
        ["--config", "configs/grpo/quick.yaml", "--model.process_weight.follow", "lines"],
        ["--config", "configs/ppo/quick.yaml", "--model.process_weight.follow=linear", "--model.process_weight.n=3"],
        ["stray"],
        ["-x", "1"],
        ["--seed_everything"],
    ],
)
def test_a_mistake_is_answered_before_torch_is_imported(mistake):
    argv = ["fit", "--config", "configs/prm/accumulator.yaml", *mistake]
    code = f"import sys; from prmkit.cli import main; s = main({argv!r}); print(s, 'torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "2 False"
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["annotate", "search", "regime", "serve", "loop"])
def test_commands_have_the_same_rules(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("twice.yaml").write_text("seed: 1\nseed: 2\n")
    Path("empty.yaml").write_text("{}")
    mistakes = {
        ("--config", "twice.yaml"): "'seed' is given twice, in lines 1 and 2",
        ("--no_such_option", "1"): "no_such_option: no such setting",
        ("--config", "empty.yaml"): "policy: got None" if command == "serve" else "not given. Give --",
        ("stray",): "stray: not an argument here",
    }
    for argv, message in mistakes.items():
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            assert main([command, *argv]) == 2
        assert message in errors.getvalue()
        assert errors.getvalue().count("\n") == 1


@pytest.mark.parametrize("command", ["annotate", "search", "regime", "serve", "loop", "judge", "convert"])
def test_every_option_of_a_command_is_known_to_its_signature(command):
    """The signature from source, against the parser that jsonargparse makes of the classes."""
    made = importlib.import_module(f"prmkit.cli.{command}").parser()
    top, schema = made.prmkit_signature
    known = set()
    for name, setting in top.settings.items():
        record = next((member for member in members(setting.kind) if isinstance(member, Record)), None)
        inner = schema.get(record.path) if record is not None else None
        known |= {f"{name}.{key}" for key in inner.settings} if inner else {name}
    real = {tuple(key.split(".")) for key in made.get_defaults(skip_validation=True).keys()} - {("config",)}  # noqa: SIM118
    assert {".".join(key[: 2 if key[0] in schema else 1]) for key in real} == known
