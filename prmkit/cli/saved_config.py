"""From a tree of settings to a parsed config, and back to the text that a run folder keeps."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from prmkit.cli.fit_settings import config_text, normalise
from prmkit.io import write_atomic
from prmkit.ownership import begins_with, check_file

__all__ = ["SavedConfig", "dump_config", "parse_tree"]

_HEADER = "# settings of a fit, saved by prmkit"


def parse_tree(parser: LightningArgumentParser, tree: dict[str, Any]) -> Any:
    """The config that a tree of settings stands for: defaults filled in, interpolations resolved, paths normalised."""
    config = parser.parse_object(copy.deepcopy(tree))
    if "/../" not in str(tree):
        return config
    plain = yaml.safe_load(parser.dump(config, skip_unset=False, skip_link_targets=False, skip_validation=True))
    return parser.parse_object(normalise(plain, tree))


def dump_config(parser: LightningArgumentParser, config: Any, raw: dict[str, Any]) -> str:
    """A parsed config as YAML, see `prmkit.cli.fit_settings.config_text`."""
    text = parser.dump(config, skip_unset=False, skip_validation=True)
    return config_text(yaml.safe_load(text), raw)


class SavedConfig(SaveConfigCallback):
    """Writes the config of a fit into its run folder, interpolations as they were written; over one that a run has
    saved, and over no other."""

    def __init__(self, *args: Any, raw: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.raw = raw
        self.already_saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        folder = trainer.log_dir or trainer.default_root_dir  # collective
        if self.already_saved or "://" in folder:
            return
        self.already_saved = True
        file = Path(folder) / self.config_filename
        check_file("trainer.default_root_dir", file, begins_with(_HEADER.encode()), "config that a run has saved")
        if trainer.is_global_zero:
            write_atomic(file, f"{_HEADER}\n{dump_config(self.parser, self.config, self.raw)}")
