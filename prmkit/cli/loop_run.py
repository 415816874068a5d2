"""The run of a loop: iteration after iteration, each from its stages, or from the registry when it has the version."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from prmkit.errors import DataError
from prmkit.io import read_json, write_atomic, write_json
from prmkit.jobs.stages import Stage, StageResult, StageRunner
from prmkit.loop.config import STAGES, LoopConfig
from prmkit.loop.identity import publication_key, recipe_commands
from prmkit.loop.plan import Begin, Plan, Products, iteration_folder
from prmkit.loop.replay import write_replay
from prmkit.loop.settings import harder_level, stage_seed
from prmkit.resources import find_config
from registry import GateConfig, Manifest, Registry
from registry.records import decode
from registry.storage import registry_url
from registry.versions import find_by_key

__all__ = ["CONFIG_FILE", "SUMMARY_FILE", "IterationResult", "Loop"]

CONFIG_FILE, SUMMARY_FILE = "loop.json", "summary.json"


@dataclass(frozen=True)
class IterationResult:
    """What an iteration came to.

    Attributes:
        iteration: number from 1.
        ref, parent: the version it published, and the one it was made from.
        figures: the pair's metrics by name.
        passed: whether it passed the gate against its parent.
        promoted: whether it has got the alias.
        reasons: of the gate, in words.
        level: how many of the `harder` settings held.
        replayed: older annotations among the PRM's records.
        pulled: it was in the registry already.
        seconds: wall-clock seconds by stage, all attempts together.
    """

    iteration: int
    ref: str
    parent: str | None
    figures: Mapping[str, float]
    passed: bool
    promoted: bool
    reasons: tuple[str, ...]
    level: int
    replayed: int
    pulled: bool
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """Where the loop stands: what the next iteration begins with, the version that is its parent, the first one that
    the loop made, and the one that it started from."""

    begin: Begin
    parent: str | None = None
    figures: Mapping[str, float] | None = None
    iteration: int = 0  # that made it
    first: str | None = None
    start: str | None = None


class Loop:
    """A loop in a locked run folder.

    Args:
        config: what to do.
        runner: of the run folder.
        say: receives a line on what is done outside the stages.
    """

    def __init__(self, config: LoopConfig, runner: StageRunner, say: Callable[[str], None]) -> None:
        self.config, self._runner, self._say = config, runner, say
        self.folder = Path(config.run)
        decode(GateConfig, config.gate, "gate")  # a wrong field should not be found hours later
        self.url = registry_url(config.registry)
        self.registry = Registry(self.url, single_writer=config.single_writer)
        self.configs = self._snapshot()
        self.plan = Plan(config, self.configs)
        self.plan.check()
        self._seconds: dict[str, float] = {}

    def run(self) -> list[IterationResult]:
        """Run what is not done yet. Returns all iterations, those of earlier calls too."""
        results: list[IterationResult] = []
        state: _State | None = None
        for iteration in range(1, self.config.iterations + 1):
            known = self._published(iteration)
            if state is None:
                state = self._start(needed=known is None or self.config.needs_first)
            result, after = self._iteration(iteration, state, known)
            results.append(result)
            self._write_summary(results)
            if state.first is None:
                labelled = after.begin.policy if self.config.order == "policy_first" else state.begin.policy
                state = replace(state, first=result.ref, begin=replace(state.begin, labelled=labelled))
            older = (*state.begin.older, *after.begin.older)
            if result.passed or self.config.on_refusal == "continue":
                begin = replace(after.begin, first=state.begin.first, labelled=state.begin.labelled, older=older)
                state = replace(after, first=state.first, start=state.start, begin=begin)
            elif self.config.on_refusal == "stop":
                self._say(f"{result.ref} is refused by the gate; the loop stops (on_refusal)")
                break
            else:
                place = state.parent or "the first policy"
                self._say(f"{result.ref} is refused by the gate; the loop continues from {place}")
                state = replace(state, begin=replace(state.begin, older=older))
        return results

    # -- an iteration -------------------------------------------------------------------------------------------------

    def _iteration(self, iteration: int, state: _State, known: Manifest | None) -> tuple[IterationResult, _State]:
        level = harder_level(self.config, state.figures)
        begin = replace(state.begin, level=level)
        replayed = 0
        if known is not None:
            folder = iteration_folder(self.folder, iteration) / "pull"
            self._run(self.plan.pull(f"{iteration}-pull", known.ref, folder, self._registry_options()))
            made = _pulled(folder / "pair")
            manifest = known
        else:
            made = self.plan.made(iteration)
            commands, replayed = self._make(iteration, begin, made)
            manifest = self._publish(iteration, state, made, commands)
        gate = self._gate(iteration, manifest, known is not None)
        figures = {name: figure.value for name, figure in manifest.metrics.figures.items()} if manifest.metrics else {}
        result = IterationResult(
            iteration, manifest.ref, manifest.parent, figures, manifest.gate.passed, gate["promoted"],
            tuple(gate["reasons"]), level, replayed, known is not None, dict(self._seconds),
        )  # fmt: skip
        self._seconds = {}
        after = Begin(made.policy, prm=made.prm, older=(made.annotations,))
        return result, _State(after, manifest.ref, figures, iteration)

    def _make(self, iteration: int, begin: Begin, made: Products) -> tuple[list[tuple[str, ...]], int]:
        """Run the stages that make a pair; returns their commands, and how many older annotations were taken in."""
        commands, replayed = [], 0
        for name in self.config.stages:
            if name == "prm" and begin.older and self.config.replay > 0.0:
                seed = stage_seed(self.config, iteration)
                replayed = write_replay(begin.older, made.annotations, self.config.replay, seed, made.replay)
                self._say(f"{iteration}-prm: {replayed} older annotations beside the new ones")
            stage: Stage = getattr(self.plan, name)(iteration, begin)
            commands.append(self._run(stage).argv)
        return commands, replayed

    def _publish(self, iteration: int, state: _State, made: Products, commands: list[tuple[str, ...]]) -> Manifest:
        """Publish the pair under the iteration's own key, with what it takes to make it again."""
        report = iteration_folder(self.folder, iteration) / "publish" / "published.json"
        argv = [sys.executable, "-m", "prmkit.cli", "pairs", "publish", self.config.pair]
        argv += ["--policy", str(made.policy), "--prm", str(made.prm), "--metrics", str(made.evaluation)]
        argv += ["--key", publication_key(self.config, self.configs, iteration), "--report", str(report)]
        argv += ["--seed", str(self.config.seed), "--summary", f"iteration {iteration} of a loop"]
        argv += [] if state.parent is None else ["--parent", state.parent]
        argv += ["--gate", str(self.folder / "configs" / "gate.json")] if self.config.gate else []
        for name, file in self._attachments(iteration, made).items():
            argv += ["--attach", f"{name}={file}"]
        for command in self._recipe(state, commands):
            argv += ["--command", shlex.join(command)]
        argv += self._registry_options()
        inputs = (made.policy, made.prm, made.evaluation / "summary.json", made.evaluation / "rows.jsonl")
        self._run(self.plan.other(iteration, "publish", argv, report, inputs))
        return Manifest.from_bytes(report.read_bytes(), str(report))

    def _gate(self, iteration: int, manifest: Manifest, pulled: bool) -> dict[str, Any]:
        """Offer the alias to the version; a refusal is an answer, not an error.

        A version that had the alias before, or has successors, was offered it by whoever published it: not again, or
        the alias could go back.
        """
        if pulled:
            named = any(
                (move.alias, move.after) == (self.config.alias, manifest.version)
                for move in self.registry.history(manifest.pair)
            )
            if named or self.registry.versions(manifest.pair)[-1] > manifest.version:
                return {"promoted": named, "reasons": list(manifest.gate.reasons)}
        report = iteration_folder(self.folder, iteration) / "gate" / "gate.json"
        argv = [sys.executable, "-m", "prmkit.cli", "pairs", "promote", manifest.ref, self.config.alias]
        argv += ["--if-passed", "--report", str(report), *self._registry_options()]
        self._run(self.plan.other(iteration, "gate", argv, report, ()))
        gate: dict[str, Any] = read_json(report)
        return gate

    def _recipe(self, state: _State, commands: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """The commands that make the iteration again in an empty folder, from its parent."""
        moved = {self.folder: "run"}
        before: list[tuple[str, ...]] = []

        def pull(ref: str, place: str, policy: Path | None, prm: Path | None = None) -> None:
            before.append(("prm", "pairs", "pull", ref, f"run/{place}/pair"))
            for name, path in (("policy", policy), ("prm", prm)):
                if path is not None:
                    moved[path] = f"run/{place}/pair/{name}"

        if state.parent is not None:
            place = f"iteration-{state.iteration}/pull" if state.iteration else "start"
            pull(state.parent, place, state.begin.policy, state.begin.prm)
        if self.config.needs_first and state.start not in (None, state.parent):
            pull(state.start, "start", state.begin.first)
        labelled = self.config.labels_from == "first" and self.config.order == "policy_first"
        if labelled and state.first not in (None, state.parent):
            pull(state.first, "iteration-1/pull", state.begin.labelled)
        if self.config.sft is not None and (state.parent is None or self.config.needs_first):
            before.append(self.plan.sft().argv)
        return recipe_commands([*before, *commands], moved)

    def _attachments(self, iteration: int, made: Products) -> dict[str, Path]:
        """What a version holds besides its models: annotations, for replay; and what its recipe reads."""
        found = {f"run/configs/{path.name}": path for path in self.configs.values()}
        found["annotations.jsonl"] = made.annotations
        if made.replay.is_file():
            found[f"run/iteration-{iteration}/{made.replay.name}"] = made.replay
        return found

    # -- what there is ------------------------------------------------------------------------------------------------

    def _published(self, iteration: int) -> Manifest | None:
        """The iteration's version, when the registry has it and nothing of it was begun here."""
        folder = iteration_folder(self.folder, iteration)
        if folder.exists() and not (folder / "pull").exists():
            return None
        key = publication_key(self.config, self.configs, iteration)
        return find_by_key(self.registry.storage, self.config.pair, key, self.registry.versions(self.config.pair))

    def _start(self, needed: bool) -> _State:
        """Where the loop begins. The first policy is made only when it is needed."""
        start = self.config.start
        if start is None:
            stage = self.plan.sft()
            policy = stage.outputs[0]
            if needed:
                self._run(stage)
            return _State(Begin(policy, first=policy if needed else None))
        if Path(start).is_dir() or "@" not in start:
            return _State(Begin(Path(start), first=Path(start)))
        manifest = self.registry.manifest(start)
        folder = self.folder / "start"
        self._run(self.plan.pull("start", manifest.ref, folder, self._registry_options()))
        figures = (
            {name: figure.value for name, figure in manifest.metrics.figures.items()} if manifest.metrics else None
        )
        policy = folder / "pair" / "policy"
        begin = Begin(policy, first=policy, prm=folder / "pair" / "prm")
        return _State(begin, manifest.ref, figures, start=manifest.ref)

    def _run(self, stage: Stage) -> Stage:
        result: StageResult = self._runner.run(stage)
        self._seconds[stage.name.partition("-")[2] or stage.name] = round(result.seconds, 1)
        return stage

    def _registry_options(self) -> list[str]:
        return ["--registry", self.url, *(["--single-writer"] if self.config.single_writer else [])]

    def _snapshot(self) -> dict[str, Path]:
        """Copy the stages' configs into the run folder, and write the loop's own beside them."""
        folder = self.folder / "configs"
        configs: dict[str, Path] = {}
        for name in STAGES:
            stage = getattr(self.config, name)
            if stage is not None:
                configs[name] = folder / f"{name}.yaml"
                _refresh(configs[name], find_config(stage.config).read_bytes())
        if self.config.gate:
            write_json(folder / "gate.json", self.config.gate)
        write_json(self.folder / CONFIG_FILE, asdict(self.config))
        return configs

    def _write_summary(self, results: list[IterationResult]) -> None:
        write_json(self.folder / SUMMARY_FILE, {"pair": self.config.pair, "iterations": [asdict(r) for r in results]})


def _refresh(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)


def _pulled(folder: Path) -> Products:
    """Where the products of an iteration lie in a pulled pair."""
    annotations = folder / "attachments" / "annotations.jsonl"
    if not annotations.is_file():
        raise DataError(f"{annotations}: missing; a version that a loop goes on from holds its annotations")
    return Products(annotations, folder / "replay.jsonl", folder / "prm", folder / "policy", folder)
