"""The stages of a loop: which commands, with which paths, in which folders.

RUN/loop.json                    the config, resolved
RUN/configs/STAGE.yaml           what each stage reads, as it was when the loop was started
RUN/sft/policy                   the first policy
RUN/iteration-1/annotate/annotations.jsonl
RUN/iteration-1/prm/model  policy/policy  evaluate/summary.json
RUN/iteration-1/publish/published.json     the manifest of the version
RUN/iteration-1/gate/gate.json             whether it has got the alias
RUN/iteration-1/pull/pair                  in place of all that, when the registry had the version already
RUN/logs/1-prm.log
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prmkit.jobs.processes import END_WITH_PARENT
from prmkit.jobs.stages import Stage
from prmkit.loop.config import LoopConfig
from prmkit.loop.settings import stage_seed, stage_settings

__all__ = ["LAST_STAGES", "Begin", "Plan", "Products", "iteration_folder"]

LAST_STAGES = ("publish", "gate")
"""Stages of an iteration behind those of its config."""
PULL = "pull"


def iteration_folder(run: Path, iteration: int) -> Path:
    """Where an iteration works."""
    return run / f"iteration-{iteration}"


@dataclass(frozen=True, slots=True)
class Begin:
    """What an iteration begins with.

    Attributes:
        policy: folder of the policy.
        first: folder of the loop's first policy; None where nothing needs it.
        labelled: folder of the policy that the first iteration annotated; None in that one.
        prm: folder of the PRM to go on from; None for a first one.
        older: annotations of the iterations before, for replay.
        level: how many of the `harder` settings hold.
    """

    policy: Path
    first: Path | None = None
    labelled: Path | None = None
    prm: Path | None = None
    older: tuple[Path, ...] = ()
    level: int = 0


@dataclass(frozen=True, slots=True)
class Products:
    """Where an iteration's products lie."""

    annotations: Path
    replay: Path
    prm: Path
    policy: Path
    evaluation: Path

    @classmethod
    def made(cls, folder: Path) -> Products:
        """Those of an iteration that was run in a folder."""
        return cls(
            folder / "annotate" / "annotations.jsonl",
            folder / "replay.jsonl",
            folder / "prm" / "model",
            folder / "policy" / "policy",
            folder / "evaluate",
        )


class Plan:
    """Makes stages.

    Args:
        config: the loop.
        configs: config file of every stage of the config, by name.
    """

    def __init__(self, config: LoopConfig, configs: Mapping[str, Path]) -> None:
        self.config, self.configs, self.run = config, configs, Path(config.run)

    def sft(self) -> Stage:
        """The stage that makes the first policy, `RUN/sft/policy`."""
        folder = self.run / "sft"
        settings = self._prepare(1, Begin(folder / "policy", first=folder / "policy"), "sft")[1]
        argv = self._fit("sft", folder, self.config.seed, settings)
        return self._stage("sft", argv, folder, (folder / "policy",), (self.configs["sft"],))

    def pull(self, name: str, ref: str, folder: Path, registry: Sequence[str]) -> Stage:
        """The stage that brings a version into `folder/pair`."""
        argv = (*_prm("pairs", "pull"), ref, str(folder / "pair"), *registry)
        return self._stage(name, argv, folder, (folder / "pair" / "pair.json",), ())

    def annotate(self, iteration: int, begin: Begin) -> Stage:
        made, settings = self._prepare(iteration, begin, "annotate")
        policy = self._judged(made, begin)
        if self.config.labels_from == "first" and begin.labelled is not None:
            policy = begin.labelled
        argv = [*_prm("annotate", "--config"), str(self.configs["annotate"]), "--policy", str(policy)]
        argv += ["--policy_name", f"{self.config.pair}, iteration {iteration}", "--output", str(made.annotations)]
        argv += ["--seed", str(stage_seed(self.config, iteration)), *settings]
        return self._of(iteration, "annotate", argv, (made.annotations,), (policy,))

    def prm(self, iteration: int, begin: Begin) -> Stage:
        """PRM training; on the replay file too, where there is one."""
        made, settings = self._prepare(iteration, begin, "prm")
        source = begin.prm if begin.prm is not None and self.config.prm_start == "warm" else self._judged(made, begin)
        records = [path for path in (made.annotations, made.replay) if path == made.annotations or path.is_file()]
        paths = json.dumps([str(path) for path in records]) if len(records) > 1 else str(records[0])
        wiring = ("--model.init_args.source.path", str(source), "--data.init_args.train.0.path", paths)
        argv = self._fit("prm", made.prm.parent, stage_seed(self.config, iteration), settings, wiring)
        return self._of(iteration, "prm", argv, (made.prm,), (source, *records))

    def policy(self, iteration: int, begin: Begin) -> Stage:
        made, settings = self._prepare(iteration, begin, "policy")
        wiring = ["--model.init_args.source.path", str(begin.policy)]
        inputs = [begin.policy]
        if self.config.reference == "first":
            wiring += ["--model.init_args.reference.path", str(_first(begin))]
            inputs.append(_first(begin))
        argv = self._fit("policy", made.policy.parent, stage_seed(self.config, iteration), settings, wiring)
        # Whatever else the settings name is read too.
        others = (made.prm, made.annotations, *([] if begin.prm is None else [begin.prm]))
        inputs += [path for path in others if any(str(path) in text for text in argv)]
        return self._of(iteration, "policy", argv, (made.policy,), inputs)

    def evaluate(self, iteration: int, begin: Begin) -> Stage:
        made, settings = self._prepare(iteration, begin, "evaluate")
        argv = [*_prm("search", "--config"), str(self.configs["evaluate"]), "--policy", str(made.policy)]
        argv += ["--prm", str(made.prm), "--output", str(made.evaluation), "--seed", str(self.config.seed), *settings]
        outputs = (made.evaluation / "summary.json", made.evaluation / "rows.jsonl")
        return self._of(iteration, "evaluate", argv, outputs, (made.policy, made.prm))

    def made(self, iteration: int) -> Products:
        """Where an iteration puts what it makes."""
        return Products.made(iteration_folder(self.run, iteration))

    def check(self) -> None:
        """ConfigError for references of a first or of a later iteration that lead nowhere."""
        place = self.run / "start"
        known = self.config.start is not None and "@" in self.config.start
        self._prepare(1, Begin(place, first=place, prm=place if known else None), "evaluate")
        self._prepare(2, Begin(place, first=place, prm=place, level=len(self.config.harder)), "evaluate")

    def other(self, iteration: int, name: str, argv: Sequence[str], output: Path, inputs: Sequence[Path]) -> Stage:
        """A stage of an iteration without a config: publish and gate."""
        return self._of(iteration, name, argv, (output,), inputs)

    def _of(
        self, iteration: int, name: str, argv: Sequence[str], outputs: tuple[Path, ...], inputs: Sequence[Path]
    ) -> Stage:
        read = (self.configs[name],) if name in self.configs else ()
        folder = iteration_folder(self.run, iteration) / name
        return self._stage(f"{iteration}-{name}", argv, folder, outputs, (*read, *inputs))

    def _stage(
        self, name: str, argv: Sequence[str], folder: Path, outputs: tuple[Path, ...], inputs: tuple[Path, ...]
    ) -> Stage:
        threads = self.config.threads
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        if self.config.devices > 1:  # nothing may write into the run's folder when the loop was killed
            environment[END_WITH_PARENT] = "1"
        return Stage(name, tuple(argv), folder, outputs, inputs, environment=environment)

    def _prepare(self, iteration: int, begin: Begin, stage: str) -> tuple[Products, list[str]]:
        """Where the iteration's products go, and a stage's settings as arguments."""
        known = self._outputs(iteration)
        known |= {"before": {"policy": str(begin.policy)} | ({} if begin.prm is None else {"prm": str(begin.prm)})}
        if begin.first is not None:
            known |= {"first": {"policy": str(begin.first)}}
        settings = stage_settings(self.config, iteration, known, begin.level)[stage]
        return self.made(iteration), _arguments(settings)

    def _judged(self, made: Products, begin: Begin) -> Path:
        """The policy that the iteration's PRM is for."""
        return made.policy if self.config.order == "policy_first" else begin.policy

    def _outputs(self, iteration: int) -> dict[str, dict[str, str]]:
        made = self.made(iteration)
        outputs = {"annotate": made.annotations, "prm": made.prm, "policy": made.policy, "evaluate": made.evaluation}
        if self.config.sft is not None:
            outputs["sft"] = self.run / "sft" / "policy"
        return {name: {"output": str(path)} for name, path in outputs.items()}

    def _fit(
        self,
        stage: str,
        folder: Path,
        seed: int,
        settings: Sequence[str],
        wiring: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """`prm fit`, by torchrun for several devices."""
        devices = self.config.devices
        command = _prm("fit")
        if devices > 1:
            launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices))
            command = (sys.executable, *launcher, *command[1:])
        own = ["--config", str(self.configs[stage]), "--trainer.default_root_dir", str(folder)]
        own += ["--seed_everything", str(seed), *wiring, *settings]
        own += ["--trainer.devices", str(devices)] if devices > 1 else []
        return (*command, *own, "--ckpt_path", "last")


def _first(begin: Begin) -> Path:
    assert begin.first is not None  # LoopConfig.needs_first
    return begin.first


def _prm(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "prmkit.cli", *arguments)


def _arguments(settings: Mapping[str, str]) -> list[str]:
    return [part for key, text in settings.items() for part in (f"--{key}", text)]
