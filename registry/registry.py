"""`Registry`: everything one can do with pairs, from Python. `prm pairs` is this class on the command line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from registry import exchange, maintenance
from registry.aliases import Intent, Move, aliases, expecting, move_alias, moves, wish
from registry.cards import Heritage, heritage_of
from registry.compatibility import check_facts
from registry.difference import Difference, difference
from registry.errors import ConflictError, GateRefusedError, NotFoundError
from registry.gate import GateConfig, GateDecision, evaluate_gate
from registry.lineage import Lineage, lineage
from registry.listing import Summary, list_pairs, list_versions, resolve, summaries
from registry.maintenance import GarbageReport, VerifyReport
from registry.manifest import Manifest
from registry.metrics import Metrics
from registry.names import PairRef, check_alias, check_pair, parse_ref
from registry.publish import Publication, load_metrics, publish
from registry.pull import PulledPair, pull
from registry.recipe import recipe_lines, reproduce
from registry.storage import Silent, Watch, open_storage, registry_url, require_registry
from registry.versions import find_by_key, read_manifest

__all__ = ["GATED_ALIASES", "Registry"]

GATED_ALIASES = ("best",)
"""Aliases that only `promote` moves."""

_SILENT = Silent()


class Registry:
    """Versioned pairs of a policy and the process reward model trained on its mistakes.

    Args:
        url: a folder, `s3://bucket/prefix`, or another URL that fsspec knows; None takes the environment variable
            PRMKIT_REGISTRY, else `runs/registry`.
        single_writer: the user's word that nobody else changes the registry at the same time; needed to change one
            in a place without conditional writes (all but folders and S3).

    References are texts: `math@7`, `math@best`, `math@latest`, `math` (the latest). All methods raise the errors of
    `registry.errors`, which are `PrmkitError`s.
    """

    def __init__(self, url: str | Path | None = None, *, single_writer: bool = False) -> None:
        self.storage = open_storage(registry_url(url), single_writer=single_writer)

    # -- looking ----------------------------------------------------------------------------------------------------

    def pairs(self) -> list[str]:
        """Names of the pairs, sorted. NotFoundError when there is no registry."""
        require_registry(self.storage)
        return list_pairs(self.storage)

    def versions(self, pair: str) -> list[int]:
        """Numbers of a pair's versions, ascending; none for a pair that is not there."""
        return list_versions(self.storage, pair)

    def summaries(self, pair: str) -> list[Summary]:
        """A line a version, ascending."""
        self._require_pair(pair)
        return summaries(self.storage, pair)

    def resolve(self, ref: str) -> PairRef:
        """The reference with a version number."""
        wanted = parse_ref(ref)
        require_registry(self.storage)
        return resolve(self.storage, wanted)

    def manifest(self, ref: str) -> Manifest:
        """All about a version."""
        return read_manifest(self.storage, self.resolve(ref))

    def aliases(self, pair: str) -> dict[str, int]:
        """Versions by alias; `latest` is not among them."""
        return aliases(self.storage, pair)

    def history(self, pair: str) -> list[Move]:
        """All moves of a pair's aliases, by time."""
        self._require_pair(pair)
        return moves(self.storage, pair)

    def diff(self, first: str, second: str) -> Difference:
        """What differs from one version to another."""
        return difference(self.manifest(first), self.manifest(second))

    def lineage(self, ref: str) -> Lineage:
        """The tree of versions that holds this one."""
        return lineage(self.storage, self.resolve(ref))

    def heritage(self, ref: str) -> Heritage:
        """License, base models and data of a version and those it was made from."""
        return heritage_of(self.storage, self.resolve(ref))

    # -- publishing and pulling -------------------------------------------------------------------------------------

    def publish(
        self, publication: Publication, *, alias: str | None = None, force: bool = False, watch: Watch = _SILENT
    ) -> Manifest:
        """Publish a pair and name it.

        Args:
            publication: what; see there.
            alias: a name for the version. One of GATED_ALIASES goes through the gate, before anything is published.
            force: overrule the gate; the history says so.
            watch: told of the bytes.
        """
        if alias is not None:
            check_alias(alias)
        known = None
        if publication.key is not None:
            check_pair(publication.pair)
            known = find_by_key(self.storage, publication.pair, publication.key, self.versions(publication.pair))
        if known is None and alias in GATED_ALIASES and not force:
            self._foresee(publication, alias)
        manifest = known or publish(self.storage, publication, watch)[0]
        if alias is None or (known is not None and self._was_named(known, alias)):
            return manifest
        if alias in GATED_ALIASES:
            self.promote(manifest.ref, alias, force=force)
        else:
            self.set_alias(manifest.ref, alias, reason="published")
        return manifest

    def pull(self, ref: str, folder: str | Path, *, force: bool = False, watch: Watch = _SILENT) -> PulledPair:
        """Bring a version's verified files into a folder; only what is missing is copied. See `registry.pull`."""
        manifest = self.manifest(ref) if force else self._compatible(ref)
        return pull(self.storage, manifest, Path(folder), watch, force=force)

    def checkout(self, ref: str, cache: str | Path | None = None, *, watch: Watch = _SILENT) -> PulledPair:
        """A version in a cache of this machine: pulled and verified once, then only looked for.

        Several processes may ask for the same version at once; one pulls, the others wait.

        Args:
            ref: which.
            cache: folder; None takes the environment variable PRMKIT_CACHE, else ~/.cache/prmkit.
            watch: told of the bytes.
        """
        manifest = self._compatible(ref)
        root = Path(cache or os.environ.get("PRMKIT_CACHE") or Path.home() / ".cache" / "prmkit")
        local = self.storage.local_path("")
        place = hashlib.sha256(str(local.resolve() if local else self.storage.url).encode()).hexdigest()[:12]
        folder = root / "pairs" / place / manifest.pair / str(manifest.version)
        return pull(self.storage, manifest, folder, watch, trust=True, wait=True)

    def _compatible(self, ref: str) -> Manifest:
        """The manifest of a version; IncompatibleError when its PRM cannot score its policy."""
        manifest = self.manifest(ref)
        check_facts(manifest.policy.facts, manifest.prm.facts).require(manifest.ref)
        return manifest

    # -- aliases ----------------------------------------------------------------------------------------------------

    def set_alias(self, ref: str, alias: str, *, reason: str = "", expect: int | Literal["any"] | None = "any") -> Move:
        """Name a version, atomically.

        Args:
            ref: the version.
            alias: its new name; not one of GATED_ALIASES.
            reason: for the history.
            expect: the version the alias must have now (None for no version), else ConflictError; "any" does not ask.
        """
        if alias in GATED_ALIASES:
            raise ConflictError(f"alias {alias}: is moved through the gate only, with `prm pairs promote`")
        target = self.resolve(ref)
        intent = Intent(target.version, reason=reason)
        return move_alias(
            self.storage, target.pair, alias, wish(intent) if expect == "any" else expecting(expect, intent)
        )

    def remove_alias(self, pair: str, alias: str, *, reason: str = "") -> Move:
        """Take a name away; the history keeps it."""
        if alias not in self.aliases(pair):
            raise NotFoundError(f"{pair}@{alias}: no such alias")
        return move_alias(self.storage, pair, alias, wish(Intent(None, reason=reason)))

    def promote(
        self, ref: str, alias: str = "best", *, force: bool = False, reason: str = "", gate: GateConfig | None = None
    ) -> Move:
        """Move an alias to a version that passed the gate.

        The version must have passed it against its parent when it was published, and must pass it against the version
        that has the alias now, should that be another one. The decision is kept in the history.

        Args:
            ref: the version.
            alias: the name.
            force: move it all the same; the history says so.
            reason: for the history.
            gate: conditions for the comparison with the alias's version; None takes those of the manifest.

        Raises:
            GateRefusedError: with the conditions that were not met.
        """
        manifest = self.manifest(ref)

        def decide(current: int | None) -> Intent:
            decision = self._decision(manifest, current, gate)
            if not decision.passed and not force:
                raise _refusal(manifest.ref, alias, decision)
            forced = not decision.passed
            return Intent(manifest.version, forced, reason, {**asdict(decision), "reasons": list(decision.reasons)})

        return move_alias(self.storage, manifest.pair, alias, decide)

    def _decision(self, manifest: Manifest, current: int | None, gate: GateConfig | None) -> GateDecision:
        """The manifest's own decision when it fails or compares with the right version, else a new one."""
        holder = None if current is None else f"{manifest.pair}@{current}"
        if gate is None and (not manifest.gate.passed or holder in (None, manifest.ref, manifest.gate.reference)):
            return manifest.gate
        if holder in (None, manifest.ref):
            holder = manifest.parent
        reference = None if holder is None else load_metrics(self.storage, self.manifest(holder))
        return evaluate_gate(load_metrics(self.storage, manifest), reference, holder, gate or manifest.gate.config)

    def _was_named(self, manifest: Manifest, alias: str) -> bool:
        """Whether a version has or had an alias: publishing it again must not take the alias back."""
        return any((m.alias, m.after) == (alias, manifest.version) for m in moves(self.storage, manifest.pair))

    def _foresee(self, publication: Publication, alias: str) -> None:
        """GateRefusedError when the version would not get its alias."""
        check_pair(publication.pair)
        current = self.aliases(publication.pair).get(alias)
        holder = None if current is None else f"{publication.pair}@{current}"
        parent = None if publication.parent is None else str(self.resolve(publication.parent))
        references = [name for name in dict.fromkeys((parent, holder)) if name is not None]
        loaded: list[tuple[str | None, Metrics | None]]
        loaded = [(name, load_metrics(self.storage, self.manifest(name))) for name in references]
        for name, reference in loaded or [(None, None)]:
            decision = evaluate_gate(publication.metrics, reference, name, publication.gate)
            if not decision.passed:
                raise _refusal(publication.pair, alias, decision)

    # -- other stores -----------------------------------------------------------------------------------------------

    def push(self, remote: Registry, ref: str, *, ancestors: bool = False, watch: Watch = _SILENT) -> list[PairRef]:
        """Copy a version to another registry, under the same number; only contents it lacks are moved.

        Args:
            remote: where to.
            ref: which.
            ancestors: copy the versions it was made from too.

        Returns:
            The versions that the other one did not have.
        """
        found = self.resolve(ref)
        refs: Sequence[PairRef] = exchange.with_ancestors(self.storage, found) if ancestors else [found]
        return exchange.copy_versions(self.storage, remote.storage, refs, watch)

    def fetch(self, remote: Registry, ref: str, *, ancestors: bool = False, watch: Watch = _SILENT) -> list[PairRef]:
        """Copy a version from another registry; see `push`. Damaged or missing contents are restored."""
        return remote.push(self, ref, ancestors=ancestors, watch=watch)

    # -- care -------------------------------------------------------------------------------------------------------

    def verify(self, ref: str | None = None, *, remove_damaged: bool = False, watch: Watch = _SILENT) -> VerifyReport:
        """Read and hash the files of a version, or of the whole registry (None). See `registry.maintenance.verify`."""
        require_registry(self.storage)
        refs = None if ref is None else [self.resolve(ref)]
        return maintenance.verify(self.storage, watch, refs, remove_damaged=remove_damaged)

    def collect_garbage(
        self, *, dry_run: bool = False, patience: float = 60.0, grace: float = 24 * 3600.0
    ) -> GarbageReport:
        """Remove what no version refers to. See `registry.maintenance.collect_garbage`."""
        require_registry(self.storage)
        return maintenance.collect_garbage(self.storage, dry_run=dry_run, patience=patience, grace=grace)

    def recipe(self, ref: str) -> list[str]:
        """The way to make a version again, as lines for a shell."""
        return recipe_lines(self.manifest(ref))

    def reproduce(self, ref: str, folder: str | Path) -> None:
        """Run the commands that made a version, in a folder that first receives its attachments."""
        reproduce(self.storage, self.manifest(ref), Path(folder))

    def _require_pair(self, pair: str) -> None:
        self.resolve(f"{check_pair(pair)}@latest")


def _refusal(what: str, alias: str, decision: GateDecision) -> GateRefusedError:
    failed = "; ".join(reason for reason in decision.reasons if reason.startswith("not met"))
    return GateRefusedError(
        f"{what}: refused by the gate to {alias!r}: {failed}. --force overrules it and says so in the history.",
        decision.reasons,
    )
