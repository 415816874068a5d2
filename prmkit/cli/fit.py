"""`prm fit`, `prm validate`, `prm test`, `prm predict`: Lightning's command line over the configs of prmkit.

The parser is LightningCLI's, used without its own subcommands: one parser is built instead of four, and a config has
the same keys for all of them. Interpolation (`${trainer.default_root_dir}/checkpoints`) is resolved after all
configs and overrides are merged. Importing this module costs nothing; Lightning is imported by the first real parse.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from prmkit.cli.fit_files import check_files
from prmkit.cli.fit_settings import read_fit, take_print_config, wants_parser_help
from prmkit.cli.pair_option import with_pair_for_fit
from prmkit.cli.parsing import expand_configs
from prmkit.jobs.processes import END_WITH_PARENT, end_with_parent
from prmkit.plugins import plugin_help

__all__ = ["fit", "predict", "test", "validate"]

log = logging.getLogger(__name__)

TERMINATED = 128 + signal.SIGTERM

_USAGE = {
    "fit": "Train what a config describes, and leave checkpoints and the trained model in its run folder.",
    "validate": "Run a config's validation data through its model once and print the metrics.",
    "test": "Run a config's test data through its model once and print the metrics.",
    "predict": "Score the steps of a config's predict data with its PRM; writes predictions.jsonl.",
}

_KEYS = """keys of a config:
  model.class_path        lightning_modules.sft.SFT | lightning_modules.prm.PRM | lightning_modules.grpo.GRPO |
                          lightning_modules.ppo.PPO | lightning_modules.dpo.DPO | lightning_modules.offline_awr.AWR,
                          with model.init_args.*
  data.class_path         datamodules.sft.SFTDataModule | datamodules.step_labels.StepLabelDataModule |
                          datamodules.experience.ExperienceDataModule (GRPO, PPO) |
                          datamodules.experience_offline.OfflineDataModule (DPO, AWR), with data.init_args.*
  trainer.*               Lightning's Trainer: max_epochs, accelerator, devices, strategy, precision,
                          accumulate_grad_batches, gradient_clip_val, val_check_interval, callbacks, logger, ...
  seed_everything         seed of Python, NumPy and torch (default 0)

arguments:
  --config FILE           may be given several times; later files win, key by key, and a list replaces a list; `key+:`
                          adds to one. Looked up in the working directory, then among the shipped configs ({configs})
  --KEY VALUE             overrides one key, whatever the files say: --model.init_args.optimizer.lr 1e-4, or short
                          --model.optimizer.lr 1e-4; `null` for nothing; an item of a list by its number:
                          --trainer.callbacks.0.save_top_k 2; one more: --trainer.callbacks+=CLASS
  --export false, --summary false, --preemption false
                          leave out what a fit does by itself where the config has no callback for it: the model's
                          folder, training.json, checkpoints (trainer.enable_checkpointing), saving on a signal
  --pair NAME@VERSION     go on from a version of the registry (--registry URL): a PRM from its PRM, a policy from its
                          policy, with its PRM where rollouts get process rewards
  --ckpt_path PATH|last   a checkpoint; `last` is the newest complete one in the run's checkpoint folder{last}
  --print_config          print the merged config with every default, interpolations as written, and stop
  --model.help CLASS      the settings of a class; likewise --data.help CLASS
  --help-all              Lightning's full help, every key with its type and default"""

_LAST = {"fit": "\n                          (when there is none yet, the run starts afresh and says so)"}

_EXAMPLES = {
    "fit": """examples:
  prm fit --config configs/sft/accumulator.yaml
  prm fit --config configs/prm/accumulator.yaml --ckpt_path last          go on where the last run stopped
  prm fit --config configs/prm/accumulator.yaml --config mine.yaml --trainer.max_epochs 2
  prm fit --config configs/prm/accumulator.yaml --trainer.devices 2 --trainer.strategy ddp
  prm fit --config configs/prm/accumulator.yaml --print_config > mine.yaml""",
    "predict": """examples:
  prm predict --config configs/prm/accumulator.yaml --ckpt_path last
  prm predict --config configs/prm/accumulator.yaml --ckpt_path last --predictions scores.jsonl""",
}

_NOTES = {
    "fit": """
On one CPU the same config and seed give the same weights. A run killed at any moment and started again with
`--ckpt_path last` goes on from its newest complete checkpoint; half-written files are never picked up. On SIGTERM or
SIGUSR1 it saves behind the present optimiser step and ends with status 75: start it again. Several machines and
clusters: docs/cluster.md.""",
    "predict": """
The lines go to `predictions.jsonl` in trainer.default_root_dir, or to --predictions FILE.""",
}


def fit(argv: Sequence[str]) -> int:
    """`prm fit`."""
    return _run("fit", argv)


def validate(argv: Sequence[str]) -> int:
    """`prm validate`."""
    return _run("validate", argv)


def test(argv: Sequence[str]) -> int:
    """`prm test`."""
    return _run("test", argv)


def predict(argv: Sequence[str]) -> int:
    """`prm predict`."""
    return _run("predict", argv)


def _run(command: str, argv: Sequence[str]) -> int:
    if not argv or any(argument in ("-h", "--help") for argument in argv):
        print(_help(command))
        return 0
    if os.environ.get(END_WITH_PARENT):
        end_with_parent()
    if wants_parser_help(argv):
        return _parser_help(command, argv)
    prints, arguments = take_print_config(argv)
    arguments, files = expand_configs(arguments)
    line = read_fit(with_pair_for_fit(arguments, files), command)
    for text in line.said:
        log.info(text)
    if prints:
        from prmkit.cli.trainer_cli import print_config

        print_config(command, line)
        return 0
    check_files(line.tree, command)
    from prmkit.cli.trainer_cli import PrmCLI, run_trainer

    return run_trainer(PrmCLI(command, line))


def _parser_help(command: str, argv: Sequence[str]) -> int:
    """The help of Lightning's own parser: all keys, or those of a class."""
    arguments, _ = expand_configs(["--help" if argument == "--help-all" else argument for argument in argv])
    from prmkit.cli.trainer_cli import parser_help

    return parser_help(command, arguments)


def _help(command: str) -> str:
    from prmkit.resources import shipped_configs

    jobs = ("sft", "prm", "grpo", "ppo", "dpo")
    configs = ", ".join(name for job in jobs for name in shipped_configs(job))
    examples = _EXAMPLES.get(
        command, f"examples:\n  prm {command} --config configs/prm/accumulator.yaml --ckpt_path last"
    )
    return "\n\n".join(
        part.strip("\n")
        for part in (
            f"usage: prm {command} --config FILE [--config FILE ...] [--KEY VALUE ...] [--ckpt_path PATH|last]",
            _USAGE[command],
            _KEYS.format(configs=configs, last=_LAST.get(command, "")),
            examples,
            _NOTES.get(command, ""),
            plugin_help(),
        )
        if part
    )
