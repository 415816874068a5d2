"""How `prm loop` prints its results and its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prmkit.cli.pairs_text import table
from registry.gate import gate_word

if TYPE_CHECKING:
    from prmkit.cli.loop_run import IterationResult
    from prmkit.loop.config import LoopConfig
    from prmkit.loop.status import LoopStatus, StageStatus

__all__ = ["status_text", "summary_text"]

_SHOWN = ("pass_at_1", "majority", "accuracy", "prm_auroc", "prm_ece")


def summary_text(results: Sequence[IterationResult], config: LoopConfig) -> str:
    """A line an iteration, and what the gate said of those that it refused."""
    shown = [name for name in _SHOWN if any(name in result.figures for result in results)]
    header = ["iteration", "version", *shown, "gate", config.alias, "replayed", "seconds"]
    rows = [
        [
            str(result.iteration), result.ref, *(_figure(result.figures, name) for name in shown),
            gate_word(result.passed), "yes" if result.promoted else "no",
            str(result.replayed), "pulled" if result.pulled else f"{sum(result.seconds.values()):.0f}",
        ]
        for result in results
    ]  # fmt: skip
    text = "\n" + table(header, rows, right=(0, *range(2, 2 + len(shown)), 4 + len(shown), 5 + len(shown)))
    for result in results:
        text += "".join(f"\n{result.ref}: {reason}" for reason in result.reasons if reason.startswith("not met"))
    return text


def status_text(status: LoopStatus, run: str) -> str:
    """A line an iteration with its stages, what is at work, and how to go on."""
    config = status.config
    if status.process is not None:
        state = f"process {status.process} at work"
    elif status.complete:
        state = "complete"
    else:
        state = "not running"
    lines = [f"{run}: {config['pair']}, {config['iterations']} iterations, seed {config['seed']}; {state}"]
    for iteration in sorted({stage.iteration for stage in status.stages}):
        stages = [stage for stage in status.stages if stage.iteration == iteration]
        name = f"iteration {iteration}" if iteration else "before"
        lines.append(f"  {name:12}{' | '.join(map(_stage, stages))}")
        if iteration in status.versions:
            lines.append(f"  {'':12}{_version(status.versions[iteration], status.promoted.get(iteration), config)}")
    current = status.current
    if current is not None:
        tries = f", attempt {current.attempts}" if current.attempts > 1 else ""
        lines.append(f"{current.name}{_of(current)} {current.state}{tries}, {current.seconds:.0f} s: {current.said}")
    if status.process is None and not status.complete:
        lines.append("the command that started it goes on with it")
    return "\n".join(lines)


def _of(stage: StageStatus) -> str:
    return f" of iteration {stage.iteration}" if stage.iteration else ""


def _stage(stage: StageStatus) -> str:
    if stage.state == "waiting":
        return f"{stage.name} -"
    return f"{stage.name} {stage.seconds:.0f} s" + ("" if stage.state == "complete" else f" ({stage.state})")


def _version(manifest: Mapping[str, Any], promoted: bool | None, config: Mapping[str, Any]) -> str:
    figures = {name: figure["value"] for name, figure in ((manifest.get("metrics") or {}).get("figures") or {}).items()}
    shown = ", ".join(f"{name} {figures[name]:.3f}" for name in _SHOWN if name in figures)
    gate = f"gate {gate_word(manifest['gate']['passed'])}"
    named = {None: "", True: f", is {config['alias']}", False: f", not {config['alias']}"}[promoted]
    return f"{manifest['pair']}@{manifest['version']}: {shown}; {gate}{named}"


def _figure(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.3f}" if name in figures else ""
