"""`prm estimate`: what a training config needs in memory and time, by part and device, before it is submitted.

Weights are counted on torch's meta device from the model's configuration; none are loaded. The formulas are those of
`prmkit.scaling`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prmkit.cli.loading import expect_hub
from prmkit.cli.parsing import expand_configs
from prmkit.cli.plain_parser import PlainParser
from prmkit.errors import ConfigError
from prmkit.scaling import DEVICES

__all__ = ["merged_config", "parser", "run"]

EXAMPLES = """examples:
  prm estimate --config configs/prm/qwen2.5-math.yaml
  prm estimate --config configs/sft/qwen2.5-math.yaml --config configs/strategy/zero2.yaml --gpu a100
  prm estimate --config configs/sft/accumulator.yaml --trainer.accelerator cpu --json

Takes the configs and keys of `prm fit`. Nothing is loaded but the model's configuration, which must be there
(model.source.path) or reachable. Weights, gradients and optimiser states are exact; activations and times are rough:
times take --utilisation of the device's peak, on a CPU of what a product of matrices reaches here. docs/scaling.md has
the formulas."""


def run(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status."""
    arguments, keys = parser().parse_known_args(list(argv) or ["--help"])
    if not 0 < arguments.utilisation <= 1:
        raise ConfigError("--utilisation", arguments.utilisation, "a number in (0, 1]")
    if arguments.tokens is not None and arguments.tokens < 1:
        raise ConfigError("--tokens", arguments.tokens, "an integer of at least 1")
    if not arguments.config:
        raise ConfigError("--config", None, "a training config", "`prm configs list` names those that are shipped.")
    config = merged_config([part for name in arguments.config for part in ("--config", name)], keys)
    path = ((config["model"].get("init_args") or {}).get("source") or {}).get("path")
    if path is not None and not Path(path).is_dir():
        expect_hub()
    from prmkit.cli.estimating import estimate

    found = estimate(config, arguments.gpu, arguments.utilisation, arguments.tokens)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        _print(found)
    return 0


def parser() -> PlainParser:
    """The command's parser, for what are not keys of the config."""
    made = PlainParser(
        prog="prm estimate",
        usage="prm estimate --config FILE [--config FILE ...] [--gpu NAME] [--KEY VALUE ...]",
        description="Estimate memory and time of a training config, by part and device.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--config", action="append", default=[], metavar="FILE", help="as of prm fit; repeatable")
    made.add_argument("--gpu", choices=tuple(DEVICES), default="h100", help="kind of device (default: %(default)s)")
    made.add_argument("--utilisation", type=float, default=0.4, help="share of its peak, in (0, 1] (default: 0.4)")
    made.add_argument("--tokens", type=int, help="tokens of a micro-batch (default: what data.batch allows)")
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def merged_config(configs: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """The configs of `--config` arguments, merged, with dotted keys set and references resolved.

    Raises:
        PrmkitError: no such file, an argument that is no key with a value, or a reference to nothing.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _, files = expand_configs(configs)
    tree: Any = OmegaConf.merge(*(OmegaConf.load(file) for file in files))
    rest = iter(keys)
    for argument in rest:
        flag, equals, text = argument.partition("=")
        value = text if equals else next(rest, None)
        if not flag.startswith("--") or "." not in flag or value is None:
            raise ConfigError(flag.lstrip("-"), value, "keys with values: --model.optimizer.lr 1e-4")
        path = flag[2:].split(".")
        if path[0] in ("model", "data") and len(path) > 1 and path[1] not in ("init_args", "class_path"):
            path.insert(1, "init_args")
        OmegaConf.update(tree, ".".join(path), yaml.safe_load(value), force_add=True)
    try:
        found: dict[str, Any] = OmegaConf.to_container(tree, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError("config", str(error).splitlines()[0], "references to keys of the merged config") from None
    if "class_path" not in (found.get("model") or {}):
        raise ConfigError("model.class_path", None, "the config of a training run")
    return found


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    weights, device = found["weights"], found["device"]
    console.print(f"{weights['trained']:,} weights trained, {weights['frozen']:,} frozen; {found['division']}")
    table = Table("part", "a device", box=None, pad_edge=False, header_style="bold")
    table.columns[1].justify = "right"
    for name, size in found["memory"].items():
        table.add_row(name, _size(size))
    table.add_row("sum", _size(found["sum"]))
    console.print(table)
    if device["memory"] is not None:
        share = found["sum"] / device["memory"]
        console.print(
            f"{device['name']}: {_size(device['memory'])}, {'fits' if share < 0.9 else 'does not fit'} ({share:.0%})"
        )
    console.print(f"host memory for each process: {_size(found['host'])} while it starts")
    step, tokens = found["step"], found["tokens"]
    console.print(f"{step['seconds']:.3g} s a step of {step['tokens']:,} tokens ({tokens:,} in a micro-batch)")
    if step["total_seconds"] is not None:
        console.print(f"{step['total_seconds'] / 3600:.3g} h for trainer.max_steps {step['steps']:,}")
    for note in found["notes"]:
        console.print(f"note: {note}")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
