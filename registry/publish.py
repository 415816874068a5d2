"""Publishing: check, store the files, and give the version its number with one exclusive write at the end.

Until that write nothing of the version can be seen; after it, nothing of it can change.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prmkit.errors import ConfigError, DataError
from prmkit.weights import check_finite
from registry.aliases import identity, now
from registry.compatibility import check_facts
from registry.errors import NotFoundError
from registry.facts import read_facts
from registry.gate import GateConfig, GateDecision, evaluate_gate
from registry.listing import resolve
from registry.manifest import Card, FileEntry, Manifest, MetricsEntry, ModelEntry, Recipe
from registry.metrics import Metrics
from registry.names import blob_key, check_pair, check_path, check_paths
from registry.records import encode
from registry.storage import Storage, Watch
from registry.storage.transfer import hash_file, in_parallel
from registry.versions import create_version, read_manifest

__all__ = ["RESULTS_FILE", "Publication", "content_key", "load_metrics", "model_files", "publish"]

RESULTS_FILE = "results.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy"}


@dataclass(frozen=True, slots=True)
class Publication:
    """What to publish.

    Attributes:
        pair: name of the pair.
        policy, prm: model folders.
        metrics: how good the pair is; None when it was not measured.
        parent: the version it was made from, and has to beat at the gate; None for a first one.
        recipe: what made it.
        card: for people.
        attachments: further files by their path in the pair, e.g. {"configs/sft.yaml": Path(...)}.
        gate: the conditions.
        key: the publication's own name, e.g. "run 17, iteration 2": publishing again under it returns the version that
            is there. None makes a new version every time.
        tokens: longest question with its solution, for the check of compatibility; None when unknown.
        allow_incompatible: publish a PRM that cannot score the policy; the problems stay in the manifest.
    """

    pair: str
    policy: str | Path
    prm: str | Path
    metrics: Metrics | None = None
    parent: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    card: Card = field(default_factory=Card)
    attachments: Mapping[str, Path] = field(default_factory=dict)
    gate: GateConfig = field(default_factory=GateConfig)
    key: str | None = None
    tokens: int | None = None
    allow_incompatible: bool = False


def publish(storage: Storage, wanted: Publication, watch: Watch) -> tuple[Manifest, bool]:
    """Publish a pair. Returns its manifest, and whether it is new (see `Publication.key`).

    Raises:
        ConfigError: a name that is not accepted.
        DataError: a folder is no model folder, holds files that a pair may not have, or weights that are broken or not
            finite.
        IncompatibleError: the PRM cannot score the policy.
    """
    check_pair(wanted.pair)
    folders = Path(wanted.policy), Path(wanted.prm)
    groups = {"policy": model_files(folders[0]), "prm": model_files(folders[1]), "attachments": _attachments(wanted)}
    policy, prm = map(read_facts, folders)
    compatibility = check_facts(policy, prm, tokens=wanted.tokens)
    if not wanted.allow_incompatible:
        compatibility.require(wanted.pair)
    in_parallel(check_finite, folders)
    storage.prepare()
    parent = None if wanted.parent is None else str(resolve(storage, wanted.parent))
    gate = _gate(storage, wanted, parent)
    with storage.publishing(), tempfile.TemporaryDirectory(prefix="prmkit-") as folder:
        if wanted.metrics is not None:
            results = Path(folder) / RESULTS_FILE
            results.write_text(json.dumps(dict(wanted.metrics.results), sort_keys=True, indent=0), encoding="utf-8")
            groups["attachments"][RESULTS_FILE] = results
        stored = _store(storage, groups, watch)
        size = sum(file.size for files in stored.values() for file in files)

        def make(number: int) -> Manifest:
            return Manifest(
                pair=wanted.pair,
                version=number,
                published=now(),
                by=identity(),
                size=size,
                parent=parent,
                policy=ModelEntry(stored["policy"], policy),
                prm=ModelEntry(stored["prm"], prm),
                attachments=stored["attachments"],
                compatibility=compatibility,
                metrics=_metrics_entry(wanted.metrics),
                gate=gate,
                recipe=wanted.recipe,
                card=wanted.card,
                key=wanted.key,
            )

        return create_version(storage, wanted.pair, make, wanted.key)


def model_files(folder: Path) -> dict[str, Path]:
    """Files of a model folder by their path in it; hidden ones are left out.

    Raises:
        DataError: it is no model folder, or holds pickles, linked folders or names that a pair may not have.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise DataError(f"{folder}: not a model folder; it needs config.json and *.safetensors")
    files = dict(sorted(_walk(folder, folder)))
    pickles = [path for path in files if Path(path).suffix.lower() in _PICKLES]
    if pickles:
        raise DataError(
            f"{folder / pickles[0]}: pairs hold safetensors, not pickles, which run code when they are read. Remove it "
            f"or convert it with save_pretrained(..., safe_serialization=True)."
        )
    return files


def content_key(policy: Path, prm: Path) -> str:
    """A publication's key made of the models' files, so that the same ones are published once. See `model_files`."""
    digest = hashlib.sha256()
    for folder in (policy, prm):
        for path, file in model_files(folder).items():
            digest.update(f"{path}\0{hash_file(file)}\n".encode())
        digest.update(b"\n")
    return f"content {digest.hexdigest()[:32]}"


def _walk(folder: Path, root: Path) -> Iterable[tuple[str, Path]]:
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise DataError(f"{path}: a link to a folder; put the files themselves into the model folder")
            yield from _walk(path, root)
        elif path.is_file():  # links to files are read: the cache of the hub is made of them
            try:
                yield check_path(path.relative_to(root).as_posix()), path
            except ConfigError as error:
                raise DataError(f"{path}: {error}") from None
        else:
            raise DataError(f"{path}: neither a file nor a folder")


def _attachments(wanted: Publication) -> dict[str, Path]:
    check_paths(wanted.attachments)
    for path, file in wanted.attachments.items():
        if path.lower() == RESULTS_FILE:
            raise ConfigError("attachments", path, f"any other name; {RESULTS_FILE} holds the metrics' results")
        if not file.is_file():
            raise DataError(f"{file}: no such file to attach")
    return dict(wanted.attachments)


def _store(
    storage: Storage, groups: Mapping[str, Mapping[str, Path]], watch: Watch
) -> dict[str, tuple[FileEntry, ...]]:
    """Store all files, a few at once, the largest first, so that no large one is left to the end."""
    jobs = [(group, path, file) for group, files in groups.items() for path, file in files.items()]
    sizes = [file.stat().st_size for _, _, file in jobs]
    watch.begin(len(jobs), sum(sizes))
    order = sorted(range(len(jobs)), key=lambda index: -sizes[index])

    def put(index: int) -> tuple[int, FileEntry]:
        _, path, file = jobs[index]
        blob = storage.put_blob(file, None, watch)
        return index, FileEntry(path, blob.sha256, blob.size)

    entries = [entry for _, entry in sorted(in_parallel(put, order), key=lambda item: item[0])]
    return {
        group: tuple(entry for (owner, _, _), entry in zip(jobs, entries, strict=True) if owner == group)
        for group in groups
    }


def _gate(storage: Storage, wanted: Publication, parent: str | None) -> GateDecision:
    reference = None if parent is None else load_metrics(storage, read_manifest(storage, resolve(storage, parent)))
    return evaluate_gate(wanted.metrics, reference, parent, wanted.gate)


def load_metrics(storage: Storage, manifest: Manifest) -> Metrics | None:
    """The metrics of a version with its results; None when it has none."""
    entry = manifest.metrics
    if entry is None:
        return None
    results = next((file for file in manifest.attachments if file.path == RESULTS_FILE), None)
    if results is None:
        raise NotFoundError(f"{manifest.ref}: has metrics, but no attachment {RESULTS_FILE}")
    with storage.open(blob_key(results.sha256)) as file:
        values = json.loads(file.read())
    return Metrics(entry.dataset, entry.figures, entry.protocol, {str(k): float(v) for k, v in values.items()})


def _metrics_entry(metrics: Metrics | None) -> MetricsEntry | None:
    if metrics is None:
        return None
    return MetricsEntry(metrics.dataset, metrics.figures, encode(metrics.protocol), len(metrics.results))
