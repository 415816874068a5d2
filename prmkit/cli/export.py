"""`prm export`: from a checkpoint of a training run to a model folder that transformers and vLLM read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prmkit.cli.fit_settings import normalise
from prmkit.cli.outputs import check_output_folder
from prmkit.cli.plain_parser import PlainParser
from prmkit.errors import ConfigError, DataError, PrmkitError
from prmkit.ownership import check_folder
from prmkit.weights import CARD_FILE

__all__ = ["run"]

EXAMPLES = """examples:
  prm export runs/prm/checkpoints/epoch=0-step=200.ckpt prm-200
  prm export runs/grpo policy --dtype bfloat16             the newest complete checkpoint of a run
  prm export step-50.ckpt policy --config runs/grpo/config.yaml --weight_version 50

CKPT is a checkpoint file, a folder of shards that ZeRO wrote (whatever its stage and number of processes; one process
puts it together), or a run's folder, whose newest complete checkpoint is taken. OUT gets weights as safetensors
(adapters folded in), configuration, tokenizer and step format; it appears when it is whole. Checkpoints hold weights
only: the model is built as the run's config says, so model.source must still be where it was. That config is
config.yaml beside or above the checkpoint, or --config FILE. Memory: about twice the model, on the CPU."""


def run(argv: Sequence[str]) -> int:
    """Run `prm export ...`; returns its exit status."""
    values = parser().parse_args(list(argv) or ["--help"])
    check_output_folder("OUT", values.output)
    check_folder("OUT", values.output, CARD_FILE, "model folder")
    find_config(find_checkpoint(Path(values.checkpoint)), None if values.config is None else Path(values.config))
    from prmkit.cli.ending import following_export, show_ending
    from prmkit.cli.exporting import export

    report = export(
        Path(values.checkpoint),
        Path(values.output),
        None if values.config is None else Path(values.config),
        values.dtype,
        values.weight_version,
        weights_only=values.weights_only == "true",
    )
    show_ending([values.output], [report], [following_export(values.output)])
    return 0


def find_config(checkpoint: Path, given: Path | None) -> Path:
    """The config of the run that wrote a checkpoint (ConfigError when it is not found)."""
    if given is not None:
        if not given.is_file():
            raise ConfigError("--config", str(given), "the config.yaml of the run")
        return given
    for folder in list(checkpoint.resolve().parents)[:3]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise DataError(f"{checkpoint}: no config.yaml beside or above it; name the run's config with --config FILE")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest complete one of a run's folder.

    Raises:
        DataError: no such path.
        PrmkitError: a folder that is no complete checkpoint and holds none.
    """
    from prmkit.checkpoints import MARKER, newest_checkpoint

    if not path.exists():
        raise DataError(f"{path}: no such checkpoint")
    if path.is_file() or (path / MARKER).is_file() or path.suffix == ".ckpt":
        return path
    found = newest_checkpoint([path, path / "checkpoints"])
    if found is None:
        raise PrmkitError(f"{path}: neither a checkpoint, nor a folder with a complete one in it or in checkpoints/")
    return found


def read_model_config(file: Path) -> dict[str, Any]:
    """The `model` section of a run's config, references to other keys resolved (DataError)."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        tree = OmegaConf.load(file)
        raw, resolved = (OmegaConf.to_container(tree, resolve=resolve) for resolve in (False, True))
        model: Any = normalise(resolved, raw)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not a config: {error}") from error
    if not isinstance(model, dict) or "class_path" not in (model.get("model") or {}):
        raise DataError(f"{file}: has no model.class_path; it is not the config of a training run")
    section: dict[str, Any] = model["model"]
    return section


def parser() -> PlainParser:
    """The command's parser."""
    made = PlainParser(
        prog="prm export",
        description="Write a model folder from a checkpoint.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("checkpoint", metavar="CKPT", help="checkpoint file, folder of shards, or run folder")
    made.add_argument("output", metavar="OUT", help="folder to write; only a model folder of ours is replaced")
    made.add_argument("--config", help="config of the run; default: config.yaml beside or above the checkpoint")
    made.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: model.source.dtype")
    made.add_argument("--weight_version", type=int, default=0, help="version to stamp on the weights (default 0)")
    made.add_argument(
        "--weights_only",
        choices=("true", "false"),
        default="true",
        help="false loads checkpoints that hold more than tensors, too; they could run code",
    )
    return made
