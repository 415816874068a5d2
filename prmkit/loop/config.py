"""What a loop is: the configuration that `prm loop` reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from prmkit.errors import ConfigError

__all__ = ["FRESH_STAGES", "ORDERS", "STAGES", "HarderConfig", "LoopConfig", "StageConfig"]

STAGES = ("sft", "annotate", "prm", "policy", "evaluate")
"""Stages that have a config of their own."""
ORDERS = {
    "prm_first": ("annotate", "prm", "policy", "evaluate"),
    "policy_first": ("policy", "annotate", "prm", "evaluate"),
}
"""Those of an iteration, as they follow each other."""
FRESH_STAGES = ("annotate", "prm", "policy")
"""Those that harder problems may enter; what pairs are measured on stays what it is."""

Order = Literal["prm_first", "policy_first"]
PRMStart = Literal["warm", "policy"]
Labels = Literal["latest", "first"]
Reference = Literal["refreshed", "first"]
Refusal = Literal["continue", "return", "stop"]


@dataclass(frozen=True)
class StageConfig:
    """One stage of the loop.

    Attributes:
        config: config file of the stage's command (`prm fit`, `prm annotate`, `prm search`).
        set: settings on top of it, by key, nested or dotted. Values may refer to others: `${iteration}` (from 1),
            `${past}` (iterations before this one), `${seed}`, `${annotate.set.limit}`, `${before.policy}` and
            `${before.prm}` (what the iteration begins with), `${first.policy}`, `${prm.output}` (what a stage makes),
            `${add:1,2}`, `${mul:2,3}`.
        later: settings on top of those, from the second iteration on.
    """

    config: str
    set: dict[str, Any] = field(default_factory=dict)
    later: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HarderConfig:
    """Settings that come in when the policy has become good enough, and stay.

    Attributes:
        above: figure (`harder_by`) of the pair before, that has to be exceeded.
        annotate, prm, policy: settings on top of the stages' own.
    """

    above: float
    annotate: dict[str, Any] = field(default_factory=dict)
    prm: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LoopConfig:
    """A loop.

    Attributes:
        pair: name of the pair whose versions the iterations publish.
        run: folder of the run.
        annotate, prm, policy, evaluate: stages of every iteration.
        sft: makes the first policy; null with `start`.
        start: what to begin with in place of `sft`: a policy's folder or hub name, or a version (`math@3`), whose PRM
            is then the first to go on from.
        iterations: how many, at least 1. Raising it later goes on with the same run.
        seed: of everything; iteration i trains and annotates with seed + 1000 (i - 1), and is measured with `seed`.
        order: "prm_first": the PRM is trained on the policy that an iteration begins with, and may reward its training;
            "policy_first": on the policy that comes of the iteration and that it is published with. Training may then
            be rewarded by the PRM before, `${before.prm}`, which was made for the policy that it starts from.
        prm_start: "warm": the PRM goes on from the one before; "policy": from the weights of the policy that it judges.
            A first one always does the latter.
        replay: share of older annotations among the PRM's records, in [0, 1).
        labels_from: "latest": the newest policy is annotated; "first": always the one that the first iteration
            annotated, a control.
        reference: of the KL penalty: "refreshed": the policy that an iteration begins with; "first": the first one.
        harder: settings for harder problems, in the order in which they come in.
        harder_by: figure of `metrics` that decides it, e.g. pass_at_1 or accuracy.
        on_refusal: when the gate refuses a pair: "continue" with its models all the same; "return" to the last
            ones that passed; "stop".
        alias: name that moves to pairs that pass.
        gate: conditions of the gate (fields of registry.GateConfig).
        registry: folder or URL; null takes the environment variable PRMKIT_REGISTRY, else runs/registry.
        single_writer: nobody else changes the registry meanwhile; for places without conditional writes.
        devices: processes of a fit, at least 1; more than 1 are started by torchrun.
        threads: of each process; null leaves it to torch. Sums differ in their last bits with it, and so do results.
    """

    pair: str
    run: str
    annotate: StageConfig
    prm: StageConfig
    policy: StageConfig
    evaluate: StageConfig
    sft: StageConfig | None = None
    start: str | None = None
    iterations: int = 2
    seed: int = 0
    order: Order = "prm_first"
    prm_start: PRMStart = "warm"
    replay: float = 0.1
    labels_from: Labels = "latest"
    reference: Reference = "refreshed"
    harder: list[HarderConfig] = field(default_factory=list)
    harder_by: str = "pass_at_1"
    on_refusal: Refusal = "continue"
    alias: str = "best"
    gate: dict[str, Any] = field(default_factory=dict)
    registry: str | None = None
    single_writer: bool = False
    devices: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if (self.sft is None) == (self.start is None):
            raise ConfigError("sft, start", "both" if self.start else "neither", "exactly one of them")
        for name in ("iterations", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "an integer of at least 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError("threads", self.threads, "an integer of at least 1, or null")
        if not 0.0 <= self.replay < 1.0:
            raise ConfigError("replay", self.replay, "a number in [0, 1)")
        for name, kind in (
            ("order", Order), ("prm_start", PRMStart), ("labels_from", Labels), ("reference", Reference),
            ("on_refusal", Refusal),
        ):  # fmt: skip
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(name, getattr(self, name), " | ".join(get_args(kind)))
        for place, name in enumerate(self.stages):
            for later in self.stages[place + 1 :]:
                if f"${{{later}.output}}" in self._settings_text(name):
                    raise ConfigError(
                        f"{name}.set", f"${{{later}.output}}", f"what is there before {name}, in order {self.order}"
                    )

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages of an iteration that have a config of their own, in order."""
        return ORDERS[self.order]

    @property
    def needs_first(self) -> bool:
        """Whether later iterations read the first policy."""
        named = any("${first." in self._settings_text(name) for name in self.stages)
        labelled = self.labels_from == "first" and self.order == "prm_first"
        return named or labelled or self.reference == "first"

    def _settings_text(self, name: str) -> str:
        stage: StageConfig = getattr(self, name)
        return str([stage.set, stage.later, *(getattr(entry, name, None) for entry in self.harder)])
