"""The loop's settings for one iteration: merged, interpolated, and flat as a command line takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prmkit.errors import ConfigError
from prmkit.loop.config import FRESH_STAGES, STAGES, LoopConfig

__all__ = ["flatten", "harder_level", "stage_seed", "stage_settings"]

_SEED_STRIDE = 1000


def stage_seed(config: LoopConfig, iteration: int) -> int:
    """Seed of what an iteration trains and annotates, from 1."""
    return config.seed + _SEED_STRIDE * (iteration - 1)


def harder_level(config: LoopConfig, figures: Mapping[str, float] | None) -> int:
    """How many of the `harder` settings hold after a pair with these figures; 0 before there is a pair.

    Raises:
        ConfigError: the figure that decides was not measured.
    """
    if figures is None or not config.harder:
        return 0
    if config.harder_by not in figures:
        raise ConfigError("harder_by", config.harder_by, f"a figure of the pairs: {' | '.join(sorted(figures))}")
    figure, level = figures[config.harder_by], 0
    while level < len(config.harder) and figure > config.harder[level].above:
        level += 1
    return level


def stage_settings(
    config: LoopConfig, iteration: int, known: Mapping[str, Any], level: int = 0
) -> dict[str, dict[str, str]]:
    """Settings of every stage in an iteration, by dotted key, as texts for a command line.

    Args:
        config: the loop.
        iteration: number from 1.
        known: further nodes that values may refer to, e.g. {"prm": {"output": "..."}, "before": {"policy": "..."}}.
        level: how many of the `harder` settings hold.

    Raises:
        ConfigError: a reference that leads nowhere, or an operand that is not a number.
    """
    stages: dict[str, Any] = {}
    for name in STAGES:
        stage = getattr(config, name)
        if stage is None:
            continue
        merged = OmegaConf.create({})
        for layer in (stage.set, stage.later if iteration > 1 else {}):
            merged = _merge(merged, layer)
        for entry in config.harder[:level] if name in FRESH_STAGES else ():
            merged = _merge(merged, getattr(entry, name))
        stages[name] = {"config": stage.config, "set": merged}
    plain = {"seed": config.seed, "iteration": iteration, "past": iteration - 1, "pair": config.pair, "run": config.run}
    register = getattr(OmegaConf, "register_resolver", None) or OmegaConf.register_new_resolver  # its name before 2.4
    register("add", lambda *values: sum(map(_number, values)), replace=True)
    register("mul", lambda one, other: _number(one) * _number(other), replace=True)
    try:
        tree: Any = OmegaConf.merge(OmegaConf.create({**plain, **stages}), OmegaConf.create(dict(known)))
        resolved: Any = {name: OmegaConf.to_container(tree[name].set, resolve=True) for name in stages}
    except OmegaConfBaseException as error:
        lines = [line.strip() for line in str(error).splitlines()]
        where = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "config")
        accepted = "references to keys of the loop's config, see docs/loop.md"
        if "before.prm" in lines[0]:
            accepted = "${before.prm} where there is one: in `later`, not in `set`, unless `start` is a version"
        raise ConfigError(where, lines[0], accepted) from error
    return {name: dict(flatten(settings)) for name, settings in resolved.items()}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of nested settings; lists, numbers, booleans and null are written as JSON."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{key}.")
        else:
            yield key, value if isinstance(value, str) else json.dumps(value)


def _merge(tree: DictConfig, layer: Mapping[str, Any]) -> DictConfig:
    """A layer of settings on top; dotted keys reach into the tree."""
    found = OmegaConf.merge(tree)
    for key, value in layer.items():
        OmegaConf.update(found, key, value, merge=True, force_add=True)
    assert isinstance(found, DictConfig)
    return found


def _number(value: Any) -> int | float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise ConfigError("${add:...}, ${mul:...}", value, "numbers")
