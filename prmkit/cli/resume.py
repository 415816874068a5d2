"""What `--ckpt_path` means, and what a fit takes from the checkpoint: checked and said before training begins.

Settings come from the config, state from the checkpoint (`callbacks.resume_settings`). Settings that differ from those
recorded in the checkpoint are listed; what cannot be continued is refused.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.checkpoint_io import newest_checkpoint
from callbacks.resume_settings import ResumeSettings
from lightning_modules.prm import PRM
from prmkit.checkpoints import read_sharded
from prmkit.checkpoints.reading import UnreadableCheckpointError, load_any, load_plain
from prmkit.checkpoints.sharded import trainer_state
from prmkit.cli.ending import model_kind
from prmkit.cli.histories import continue_histories
from prmkit.errors import ConfigError, PrmkitError

if TYPE_CHECKING:
    from prmkit.cli.trainer_cli import PrmCLI

__all__ = ["checkpoint_folders", "checkpoint_path", "flat_settings", "resume"]

log = logging.getLogger(__name__)

_QUIET = (
    "default_root_dir", "callbacks", "logger", "plugins", "profiler", "max_time", "fast_dev_run", "barebones",
    "log_every_n_steps", "num_sanity_val_steps", "detect_anomaly", "inference_mode", "enable_checkpointing",
    "enable_progress_bar", "enable_model_summary", "enable_autolog_hparams", "model_registry",
)  # fmt: skip
"""Settings of the trainer that change nothing of what is learned."""

_STRUCTURE = re.compile(
    r"model\.class_path|model\.(source|critic)\.(config\.(model_type|vocab_size|head_dim|tie_word_embeddings|"
    r"hidden_size|intermediate_size|num_\w+)|lora(\.(r|target_modules)\b.*)?)"
)
"""Settings that decide which weights a model has."""


def checkpoint_folders(trainer: Trainer) -> list[str]:
    """Folders that checkpoints are written to."""
    savers = [saver for saver in trainer.checkpoint_callbacks if isinstance(saver, ModelCheckpoint)]
    return list(dict.fromkeys(str(saver.dirpath) for saver in savers if saver.dirpath is not None))


def checkpoint_path(cli: PrmCLI) -> str | None:
    """The checkpoint that `--ckpt_path` means; None to start from the model as configured.

    `last` looks into the `dirpath` of every ModelCheckpoint of the config. With `fit` and no complete checkpoint there
    it is None, with a line in the log; the other commands refuse. A whole one that is refused is an error.
    """
    wanted = cli.config.ckpt_path
    if wanted is None:
        return None
    if wanted != "last":
        if "://" not in wanted and not Path(wanted).exists():
            raise ConfigError("ckpt_path", wanted, "an existing checkpoint, or `last`")
        return _checked(cli, str(wanted))
    folders = checkpoint_folders(cli.trainer)
    if not folders:
        raise ConfigError(
            "ckpt_path",
            "last",
            "a config whose ModelCheckpoint has a `dirpath`, which tells where the run keeps its checkpoints",
            "Set it under trainer.callbacks, or name the checkpoint file.",
        )
    found = _newest(cli, folders)
    if found is not None:
        log.info("resuming from %s", found)
        return _checked(cli, str(found))
    if cli.command != "fit":
        raise PrmkitError(f"--ckpt_path last: no complete checkpoint in {', '.join(folders)}; run `prm fit` first")
    log.info("--ckpt_path last: no complete checkpoint in %s; starting afresh", ", ".join(folders))
    return None


def _newest(cli: PrmCLI, folders: Sequence[str]) -> Path | None:
    try:
        return newest_checkpoint(folders, resumable=cli.command == "fit", weights_only=cli.config.weights_only)
    except UnreadableCheckpointError as error:
        raise UnreadableCheckpointError(f"--ckpt_path last: {error}") from error


def _checked(cli: PrmCLI, path: str) -> str:
    """The path itself, once it is known that a fit of this strategy can continue from it (PrmkitError)."""
    check = getattr(cli.trainer.strategy, "check_checkpoint", None)
    if "://" in path:
        return path
    if check is not None:
        check(Path(path))
    elif Path(path).is_dir():
        info = read_sharded(path)
        if cli.command == "fit":
            raise PrmkitError(
                f"--ckpt_path {path}: shards of ZeRO {info.stage} by {info.processes} processes, and this fit does not "
                f"run under ZeRO. Add --config configs/strategy/zero{info.stage}.yaml, or start from its weights: "
                f"`prm export {path} OUT` and --model.source.path OUT."
            )
    return path


def resume(cli: PrmCLI) -> str | None:
    """The checkpoint that a command loads. For a fit it is compared with the config first: differences are logged, what
    cannot be continued raises PrmkitError, and loggers continue their histories."""
    trainer = cli.trainer
    if cli.command != "fit":
        path = checkpoint_path(cli)
        if path is None:
            _refuse_new_model(cli)
        return path
    if trainer.fast_dev_run and cli.config.ckpt_path is not None:
        log.info("fast_dev_run: starts from the model as configured; --ckpt_path %s is left out", cli.config.ckpt_path)
        return None
    path = checkpoint_path(cli)
    if path is None or "://" in path:
        return path
    state = _state(path, cli.config.weights_only)
    if "loops" not in state or "lr_schedulers" not in state:
        raise PrmkitError(
            f"--ckpt_path {path}: holds weights only, without the state of a fit. Start from its weights: `prm export "
            f"{path} OUT` and --model.source.path OUT."
        )
    keeper = next(each for each in trainer.callbacks if isinstance(each, ResumeSettings))  # type: ignore[attr-defined]
    found = keeper.expect(path, state)
    changes = list(_changes(keeper.settings, found.get("settings")))
    _refuse_structure(path, changes)
    _check_length(trainer, path, state, found.get("settings", {}))
    for key, ours, theirs in changes:
        log.info("resume: %s: %s (checkpoint: %s)", key, ours, theirs)
    continue_histories(trainer, found, int(state["global_step"]))
    return path


def _refuse_new_model(cli: PrmCLI) -> None:
    """Refuse to measure a model of random weights, as a config describes it before its fit (ConfigError)."""
    source = getattr(cli.model, "source", None)
    path = getattr(source, "path", None)
    if source is None or (path is not None and (not isinstance(cli.model, PRM) or model_kind(path) != "policy")):
        return
    raise ConfigError(
        "ckpt_path",
        None,
        "a checkpoint, or `last`",
        f"This config describes a model before its fit, of {'a new head' if path else 'new and random weights'}; a "
        f"trained one is named by --model.source.path MODEL, too.",
    )


def _state(path: str, weights_only: bool) -> dict[str, Any]:
    """What a checkpoint holds beside the shards; tensors stay on the disk."""
    place = Path(path)
    if place.is_dir():
        return trainer_state(place, weights_only)
    try:
        state = (load_plain if weights_only else load_any)(place, mmap=True)
    except UnreadableCheckpointError as error:
        raise UnreadableCheckpointError(f"--ckpt_path {error}") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise PrmkitError(f"--ckpt_path {path}: not a complete checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or "global_step" not in state:
        raise PrmkitError(f"--ckpt_path {path}: not a checkpoint of a fit")
    return state


# -- settings ---------------------------------------------------------------------------------------------------------


def flat_settings(config: Any) -> dict[str, Any]:
    """Settings of a merged config that decide what is learned, as dotted key (without `init_args`) to plain value."""
    found = {}
    for key, value in _flat(config, ()):
        head, _, rest = key.partition(".")
        if head in ("model", "data", "seed_everything") or (head == "trainer" and rest.split(".")[0] not in _QUIET):
            found[key] = value
    return found


def _flat(node: Any, at: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if hasattr(node, "__dict__") and not isinstance(node, (str, Path)):
        node = vars(node)
    items: Any
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        plain = node is None or isinstance(node, (bool, int, float, str))
        yield ".".join(at), node if plain else str(node)
        return
    for key, value in items:
        yield from _flat(value, at if key == "init_args" else (*at, str(key)))


def _changes(ours: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """(key, value of the config, value of the checkpoint) where they differ."""
    if theirs is None:
        return
    for key in sorted({*ours, *theirs}):
        if key not in ours or key not in theirs or ours[key] != theirs[key]:
            yield key, _shown(ours, key), _shown(theirs, key)


def _shown(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def _refuse_structure(path: str, changes: Sequence[tuple[str, str, str]]) -> None:
    found = [change for change in changes if _STRUCTURE.fullmatch(change[0])]
    if found:
        key, ours, theirs = found[0]
        raise PrmkitError(
            f"{key}: got {ours}; accepted: {theirs}, with which {path} was written. Another model cannot continue from "
            f"its state: keep the value, or start without --ckpt_path."
        )


def _check_length(trainer: Trainer, path: str, state: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuse a fit that was shortened to what is done already; say so when it was complete before."""
    epochs = int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    for key, limit, done, unit in (
        ("max_epochs", trainer.max_epochs, epochs, "epochs"),
        ("max_steps", trainer.max_steps, int(state["global_step"]), "optimiser steps"),
    ):
        if limit in (None, -1) or done < limit:
            continue
        before = recorded.get(f"trainer.{key}", limit)
        if done == limit and before == limit:
            log.info("resume: %s has all %d %s of this fit; nothing is left to train", path, done, unit)
        else:
            raise ConfigError(
                f"trainer.{key}",
                limit,
                f"more than {done}, the {unit} of {path}",
                f"Raise it to train on; the weights as they are: `prm export {path} OUT`.",
            )
