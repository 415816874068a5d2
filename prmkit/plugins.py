"""Parts by name: those built in, and those that other packages add. Imports no torch.

A kind of part (search method, reward, task, engine, step format, PRM head, loss, annotation method) has one
`Catalogue`. Its room fills it with what is built in, and `register_*` adds what comes from outside. A name is looked
up in three places, in this order:

1. the catalogue as it is;
2. for `package.module:attribute`: what that attribute was registered as, once its module is imported;
3. the catalogue after all plugins are imported: installed packages with an entry point in the group `prmkit.plugins`,
   which names a module to import.

So a built-in name never waits for plugins, every process of a job finds the same parts, and help lists them all.
`docs/extending.md` shows each kind. The catalogues of heads and losses are here, as their rooms import torch.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

from prmkit.errors import ConfigError, PluginError, PrmkitError

__all__ = [
    "HEADS",
    "POLICY_LOSSES",
    "PRM_LOSSES",
    "Catalogue",
    "Head",
    "HeadName",
    "PRMLossName",
    "PolicyLossName",
    "import_attribute",
    "load_plugins",
    "plugin_help",
    "plugin_states",
    "register_head",
    "register_loss",
]

GROUP = "prmkit.plugins"
_REFERENCE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

T = TypeVar("T")
Made = TypeVar("Made")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    """A part, and what was registered as it. `part` of a built-in may be `module:attribute`, imported on first use."""

    part: T | str
    source: Any = None

    @property
    def where(self) -> str:
        """Module and name of what was registered."""
        module = getattr(self.source, "__module__", None)
        return f"{module}:{getattr(self.source, '__qualname__', type(self.source).__name__)}" if module else "prmkit"


class Catalogue(Mapping[str, T]):
    """Parts of one kind by name. Iteration imports the plugins, and lookup does where a name is not known yet.

    Args:
        kind: what the parts are, for messages and help, e.g. "search method".
        built_in: parts by name; text `module:attribute` stands for a part that is imported on first use.
        names: pattern of a name.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T | str], names: str = r"[A-Za-z]\w*") -> None:
        self.kind = kind
        self._names = names
        self._entries: dict[str, _Entry[T]] = {name: _Entry(part) for name, part in built_in.items()}
        _CATALOGUES.append(self)

    def add(self, name: str, part: T, source: object) -> None:
        """Register a part.

        Args:
            name: its name; not taken, unless by an earlier definition of the same source (a notebook's cell run again).
            part: the part.
            source: what the part was made of, by which `module:attribute` finds it: the decorated class or function.

        Raises:
            PluginError: the name is taken, or is no name.
        """
        entry = _Entry(part, source)
        if not re.fullmatch(self._names, name):
            raise PluginError(f"{self.kind} {name!r} of {entry.where}: a name has letters, digits and underscores")
        known = self._entries.get(name)
        if known is not None and not _same(known.source, source):
            raise PluginError(
                f"{self.kind} {name!r} of {entry.where}: the name is taken by {known.where}. Register it under another."
            )
        self._entries[name] = entry

    def name_of(self, given: str, field: str) -> str:
        """The name of a part that is given by its name or as `module:attribute`.

        Args:
            given: as the user wrote it.
            field: key or option, for the message.

        Raises:
            ConfigError: no such part; the message lists all names and the nearest.
            PluginError: a plugin cannot be imported.
        """
        if not isinstance(given, str):  # from a file, or from Python
            raise ConfigError(field, given, " | ".join(self))
        if given in self._entries:
            return given
        if _REFERENCE.fullmatch(given):
            return self._name_of_object(import_attribute(given, field), given, field)
        load_plugins()
        if given in self._entries:
            return given
        near = difflib.get_close_matches(given, self._entries, n=1) or [
            n for n in self._entries if given and given in n
        ]
        hint = f"Did you mean `{near[0]}`?" if near else ""
        raise ConfigError(field, given, " | ".join(self._entries), hint)

    def find(self, given: str, field: str) -> T:
        """The part that is given by its name or as `module:attribute`. Errors as in `name_of`."""
        return self[self.name_of(given, field)]

    def from_outside(self) -> dict[str, str]:
        """Names that were registered from outside, and where each was defined."""
        return {name: entry.where for name, entry in self._entries.items() if entry.source is not None}

    @property
    def known(self) -> tuple[str, ...]:
        """Names registered so far; imports nothing."""
        return tuple(self._entries)

    def __getitem__(self, name: str) -> T:
        try:
            entry = self._entries[self.name_of(name, self.kind)]
        except ConfigError as error:
            raise KeyError(str(error)) from None
        return import_attribute(entry.part, self.kind) if isinstance(entry.part, str) else entry.part

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and bool(self.name_of(name, self.kind))
        except ConfigError:
            return False

    def __iter__(self) -> Iterator[str]:
        _list_plugins()
        return iter(self._entries)

    def __len__(self) -> int:
        _list_plugins()
        return len(self._entries)

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def _name_of_object(self, found: object, given: str, field: str) -> str:
        names = [name for name, entry in self._entries.items() if entry.source is found]
        if len(names) != 1:
            accepted = f"an object registered once as a {self.kind}"
            raise ConfigError(field, given, accepted, f"It was registered {len(names)} times.")
        return names[0]


_CATALOGUES: list[Catalogue[Any]] = []


def _same(one: Any, other: Any) -> bool:
    """True if two sources are one definition: the same object, or a class or function that was defined again."""
    if one is None or other is None:
        return False
    keys = [(getattr(it, "__module__", None), getattr(it, "__qualname__", None)) for it in (one, other)]
    return one is other or one == other or (None not in keys[0] and keys[0] == keys[1])


def import_attribute(reference: str, field: str) -> Any:
    """What `package.module:attribute` names.

    Raises:
        ConfigError: there is no such module or attribute.
        PluginError: the module cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        missing = str(error.name) if isinstance(error, ModuleNotFoundError) else ""
        if missing and f"{module}.".startswith(f"{missing}."):
            remedy = "Install its package, or put the folder that holds it on PYTHONPATH."
            raise ConfigError(field, reference, f"module:attribute; there is no module {missing}", remedy) from None
        raise PluginError(f"{field}: {reference}: the module cannot be imported: {_reason(error)}") from error
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ConfigError(field, reference, f"module:attribute; {module} has no attribute {name}")
    return found


@cache  # a failure is not kept: it is raised again at the next lookup
def load_plugins() -> None:
    """Import the modules that installed packages name as entry points of the group `prmkit.plugins`.

    Raises:
        PluginError: one cannot be imported.
    """
    for point in _entry_points():
        _load(point)


def plugin_states() -> list[dict[str, str]]:
    """Name, package, version and state ("ok", or why it cannot be imported) of each plugin."""
    found = []
    for point in _entry_points():
        state = "ok"
        try:
            _load(point)
        except PluginError as error:
            state = str(error)
        package, version = (point.dist.name, point.dist.version) if point.dist is not None else ("", "")
        found.append({"name": point.name, "package": package, "version": version, "state": state})
    return found


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def _load(point: importlib.metadata.EntryPoint) -> None:
    try:
        point.load()
    except Exception as error:
        package = point.dist.name if point.dist is not None else point.value
        raise PluginError(
            f"plugin {point.name} ({point.value}, of {package}) cannot be imported: {_reason(error)}. "
            f"Mend it, or take it away: pip uninstall {package}"
        ) from error


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, PrmkitError) else f"{type(error).__name__}: {error}"
    return text.rstrip(".")


@cache
def _list_plugins() -> None:
    """`load_plugins` for a list of names: one that cannot be imported is a warning, once."""
    try:
        load_plugins()
    except PluginError as error:
        log.warning("%s", error)


def plugin_help() -> str:
    """Lines for `--help` on the parts from outside; "" where there are none."""
    _list_plugins()
    found = [
        f"\n  {catalogue.kind:18}{name:22}{where}"
        for catalogue in _CATALOGUES
        for name, where in catalogue.from_outside().items()
    ]
    return f"\nfrom plugins:{''.join(found)}\n" if found else ""


# -- heads and losses -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Head:
    """A kind of head of process reward models.

    Attributes:
        outputs: 2 for the logits (wrong, right), 1 for the logit of right; None for two rows of the language model's.
        make: `(config) -> torch.nn.Module` from hidden states [N, H] to logits [N, outputs], for a head from outside;
            None for those of transformers' token classifiers.
    """

    outputs: Literal[1, 2] | None
    make: Callable[[Any], Any] | None = None


HEADS: Catalogue[Head] = Catalogue("PRM head", {"label_tokens": Head(None), "token_head": Head(2), "scalar": Head(1)})
PRM_LOSSES: Catalogue[Callable[..., Any]] = Catalogue(
    "PRM loss",
    {
        "hard": "prmkit.losses.prm:hard_cross_entropy",
        "soft": "prmkit.losses.prm:soft_cross_entropy",
        "mse": "prmkit.losses.prm:mean_squared_error",
        "pairwise": "prmkit.losses.prm:pairwise",
    },
)
POLICY_LOSSES: Catalogue[Callable[..., Any]] = Catalogue(
    "policy loss", {"clip": "prmkit.losses.policy:clip_loss", "cispo": "prmkit.losses.policy:cispo_loss"}
)
HeadName = Annotated[str, HEADS]
PRMLossName = Annotated[str, PRM_LOSSES]
PolicyLossName = Annotated[str, POLICY_LOSSES]


def register_head(name: str, *, outputs: Literal[1, 2]) -> Callable[[Made], Made]:
    """Register a head of process reward models: `step_format.prm.head: NAME`.

    Decorates `(config) -> torch.nn.Module`; config is the decoder's transformers configuration, the module maps hidden
    states [N, H] to logits [N, outputs]. Its weights are stored as `score.*` of the model folder.

    Args:
        name: the head's name.
        outputs: 2 for the logits (wrong, right), 1 for the logit of right.
    """

    def register(make: Made) -> Made:
        HEADS.add(name, Head(outputs, cast(Callable[[Any], Any], make)), make)
        return make

    return register


def register_loss(name: str, *, of: Literal["prm", "policy"] = "prm") -> Callable[[Made], Made]:
    """Register a loss: `model.loss: NAME` of a PRM, `model.loss.kind: NAME` of GRPO and PPO.

    Of a PRM it decorates `(logits, targets) -> LossOutput` with logits [N, 2] or [N, 1] and targets [N] in [0, 1] (see
    `prmkit.losses.prm`; a third argument `pairs` asks for batches with pairs). Of a policy it decorates
    `(logprobs, ratio, advantages, config) -> [B, T]`, a term a token (see `prmkit.losses.policy.policy_loss`).

    Args:
        name: the loss's name.
        of: what is trained with it.
    """
    catalogue = {"prm": PRM_LOSSES, "policy": POLICY_LOSSES}[of]

    def register(loss: Made) -> Made:
        catalogue.add(name, cast(Callable[..., Any], loss), loss)
        return loss

    return register
