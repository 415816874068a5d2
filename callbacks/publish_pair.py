"""Publish a pair from inside a fit: the model that was trained, with the one it belongs to."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from lightning_modules.prm import PRM
from prmkit.errors import ConfigError
from prmkit.models import resolve_folder
from prmkit.weights import Kind, check_kind
from registry import Card, Manifest, Publication, Registry, read_metrics, record_recipe
from registry.errors import GateRefusedError, NotFoundError
from registry.hub import check_hub_layout, write_hub_layout
from registry.publish import content_key
from registry.pull import PulledPair

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PublishPair", "log_to_wandb"]

logger = logging.getLogger(__name__)


class _Exports(Protocol):
    def export_pretrained(self, directory: str | Path, weight_version: int = 0) -> None: ...


class PublishPair(Callback):
    """Publishes a version when a fit ends well; rank 0 publishes, the others wait.

    The module under training is one half (a PRM, or else a policy), the folder named is the other. A fit that ends
    again with the same weights, because it was started again when it was complete, publishes nothing new. The run's
    config is attached, and `prm pairs reproduce` names the command. A refusal of the gate is a warning: the version
    is published without the alias.

    Args:
        pair: name of the pair.
        policy: folder or hub name of the policy, where a PRM is trained.
        prm: folder or hub name of the PRM, where a policy is trained. Exactly one of the two is given.
        registry: folder or URL; None takes the environment variable PRMKIT_REGISTRY, else runs/registry.
        parent: the version it is made from and has to beat, e.g. math@best; None for a first one.
        alias: name to move to it; `best` asks the gate.
        metrics: output folder of `prm search` or a file of metrics, read when the fit ends; None for none.
        card: fields of the model card, e.g. {summary: ..., license: apache-2.0}.
        hub_layout: folder to write both models to as repositories of the Hugging Face hub; None for none.
        wandb: log the pair as an artifact of the run of the trainer's WandbLogger (offline too).
        single_writer: nobody else changes the registry meanwhile; for places without conditional writes.
    """

    leaves_files = True  # left out of a fast_dev_run

    def __init__(
        self,
        pair: str,
        policy: str | None = None,
        prm: str | None = None,
        registry: str | None = None,
        parent: str | None = None,
        alias: str | None = None,
        metrics: str | None = None,
        card: dict[str, Any] | None = None,
        hub_layout: str | None = None,
        wandb: bool = False,
        single_writer: bool = False,
    ) -> None:
        if (policy is None) == (prm is None):
            raise ConfigError("publish_pair.policy, prm", (policy, prm), "exactly one: the half that is not trained")
        self.pair, self.policy, self.prm, self.parent, self.alias = pair, policy, prm, parent, alias
        self.metrics, self.hub_layout, self.wandb = metrics, hub_layout, wandb
        self.card = _card(card or {})
        self.registry, self.single_writer = registry, single_writer

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work before hours are spent on it."""
        if not hasattr(pl_module, "export_pretrained"):
            raise ConfigError(
                "trainer.callbacks.PublishPair", type(pl_module).__name__, "a module with export_pretrained"
            )
        wanted = "policy" if isinstance(pl_module, PRM) else "prm"
        if getattr(self, wanted) is None:
            raise ConfigError(f"publish_pair.{wanted}", None, f"the {wanted} that this {type(pl_module).__name__} fits")
        fixed: Kind = "policy" if wanted == "policy" else "prm"
        check_kind(f"publish_pair.{wanted}", getattr(self, wanted), resolve_folder(getattr(self, wanted)), fixed)
        if self.hub_layout is not None and stage == "fit":
            check_hub_layout(self.pair, self.hub_layout)
        if self.wandb and not any(isinstance(log, WandbLogger) for log in trainer.loggers):
            raise ConfigError("publish_pair.wandb", True, "false without a WandbLogger under trainer.logger")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._publish(trainer, pl_module)
        trainer.strategy.barrier("publish_pair")

    def _publish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        store = Registry(self.registry, single_writer=self.single_writer)
        with _exported(pl_module) as trained:
            policy = trained if self.policy is None else resolve_folder(self.policy)
            prm = trained if self.prm is None else resolve_folder(self.prm)
            config = Path(trainer.log_dir or trainer.default_root_dir) / "config.yaml"
            known = config.is_file()
            publication = Publication(
                self.pair,
                policy,
                prm,
                metrics=None if self.metrics is None else read_metrics(self.metrics),
                parent=self.parent,
                recipe=record_recipe([("prm", "fit", "--config", config.name)] if known else []),
                card=self.card,
                attachments={config.name: config} if known else {},
                key=content_key(policy, prm),
            )
            manifest = store.publish(publication)
            logger.info("published %s in %s", manifest.ref, store.storage.url)
            self._name(store, manifest)
            if self.wandb:
                log_to_wandb(trainer.loggers, manifest, policy, prm, _parent_of(store, manifest))
        if self.hub_layout is not None:
            pulled = store.checkout(manifest.ref)
            write_hub_layout(pulled, self.hub_layout, heritage=store.heritage(manifest.ref))

    def _name(self, store: Registry, manifest: Manifest) -> None:
        if self.alias is None:
            return
        try:
            if self.alias == "best":
                store.promote(manifest.ref, self.alias)
            else:
                store.set_alias(manifest.ref, self.alias, reason="published by a fit")
        except GateRefusedError as refusal:
            logger.warning("%s", refusal)


def log_to_wandb(
    loggers: list[Any], manifest: Manifest, policy: Path, prm: Path, parent: PulledPair | None = None
) -> None:
    """Log a pair as an artifact of type `pair`, named as the pair is, with its manifest as metadata.

    The version it was made from is what the run used, so that W&B shows the lineage: the same files under the same name
    are the same artifact there, logged before or not.
    """
    experiment = next(log.experiment for log in loggers if isinstance(log, WandbLogger))
    if parent is not None:
        used = _artifact(parent.manifest, parent.policy, parent.prm)
        _use(experiment, used, [f"registry-{parent.manifest.version}"])
    experiment.log_artifact(_artifact(manifest, policy, prm), aliases=["latest", f"registry-{manifest.version}"])


def _artifact(manifest: Manifest, policy: Path, prm: Path) -> Any:
    import wandb

    artifact = wandb.Artifact(
        manifest.pair, type="pair", description=manifest.card.summary or None, metadata=_metadata(manifest)
    )
    for member, folder in (("policy", policy), ("prm", prm)):
        for file in manifest.files(member):
            artifact.add_file(str(folder / file.path), name=f"{member}/{file.path}")
    with artifact.new_file("pair.json", mode="wb") as file:
        file.write(manifest.to_bytes())
    return artifact


def _use(experiment: Any, artifact: Any, aliases: list[str]) -> None:
    """`use_artifact`, which wandb refuses offline; the record that it writes is then written here, for `wandb sync`."""
    if not experiment.settings._offline:
        experiment.use_artifact(artifact, aliases=aliases)
    elif hasattr(experiment, "_log_artifact"):
        experiment._log_artifact(artifact, aliases=aliases, is_user_created=True, use_after_commit=True)
    else:
        logger.warning("wandb offline: the run does not say that it used %s", artifact.metadata["ref"])


def _parent_of(store: Registry, manifest: Manifest) -> PulledPair | None:
    """The version that another was made from; None where there is none, or the registry has it no more."""
    if manifest.parent is None:
        return None
    try:
        return store.checkout(manifest.parent)
    except NotFoundError as error:
        logger.warning("wandb: no lineage from %s: %s", manifest.parent, error)
        return None


def _metadata(manifest: Manifest) -> Mapping[str, Any]:
    """What wandb shows and searches of a manifest."""
    figures = {} if manifest.metrics is None else {n: f.value for n, f in manifest.metrics.figures.items()}
    return {
        "ref": manifest.ref,
        "parent": manifest.parent,
        "dataset": None if manifest.metrics is None else manifest.metrics.dataset,
        "gate_passed": manifest.gate.passed,
        **figures,
    }


@contextmanager
def _exported(module: LightningModule) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="prmkit-") as folder:
        target = Path(folder) / "model"
        cast(_Exports, module).export_pretrained(target)
        yield target


def _card(fields: dict[str, Any]) -> Card:
    from registry.records import decode

    return decode(Card, fields, "publish_pair.card")
