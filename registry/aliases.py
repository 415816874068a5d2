"""Aliases that move one at a time, and the log of all their moves.

An alias is a small file that holds its last move: from where, to where, by whom, when, why, and the move's number.
Moving it replaces that file if it is still the one that was read. Every move is also kept as a file of its own that is
never changed; whoever moves an alias first sees to it that the previous move has one. A process killed between
the two therefore loses nothing.
"""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prmkit.errors import DataError
from registry.errors import ConflictError, DamagedError
from registry.names import alias_key, alias_prefix, check_alias, check_pair, history_key, history_prefix, is_alias
from registry.records import decode, encode
from registry.sealed import check_schema, seal, unseal
from registry.storage import Storage
from registry.storage.transfer import in_parallel

__all__ = ["Intent", "Move", "alias_target", "aliases", "expecting", "identity", "move_alias", "moves", "now", "wish"]

_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an alias.

    Attributes:
        pair, alias: what moved.
        serial: number of the move, from 1.
        before, after: versions; None before the first move, and after a removal.
        time: UTC, ISO 8601.
        by: who, as user@host.
        forced: the gate was overruled.
        reason: why, in words; "" when not given.
        gate: the decision the move rests on, as JSON; None when no gate was asked.
    """

    pair: str
    alias: str
    serial: int
    before: int | None
    after: int | None
    time: str
    by: str
    forced: bool = False
    reason: str = ""
    gate: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_pair(self.pair)
        check_alias(self.alias)


@dataclass(frozen=True, slots=True)
class Intent:
    """A move wanted: to which version (None removes the alias), and what the log is to say. See Move."""

    after: int | None
    forced: bool = False
    reason: str = ""
    gate: Mapping[str, Any] | None = None


def now() -> str:
    """The time, UTC, ISO 8601 to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def identity() -> str:
    """user@host; the environment variable PRMKIT_USER takes its place."""
    named = os.environ.get("PRMKIT_USER")
    if named:
        return named
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        user = f"uid{os.getuid()}"
    return f"{user}@{platform.node() or 'unknown'}"


def aliases(storage: Storage, pair: str) -> dict[str, int]:
    """Versions by alias, sorted by alias; `latest` is not among them."""
    names = _names(storage, check_pair(pair))
    targets = in_parallel(lambda name: alias_target(storage, pair, name), names)
    return {name: target for name, target in zip(names, targets, strict=True) if target is not None}


def alias_target(storage: Storage, pair: str, alias: str) -> int | None:
    """The version of an alias; None when there is no such alias."""
    last = _last(storage, pair, alias)
    return None if last is None else last[0].after


def move_alias(storage: Storage, pair: str, alias: str, decide: Callable[[int | None], Intent]) -> Move:
    """Move an alias.

    Args:
        storage: where.
        pair, alias: which.
        decide: what is wanted, given the version the alias has now (None for none). Asked again when somebody else
            moved it meanwhile; what it raises ends the attempt with nothing changed.

    Returns:
        The move, or the last one when the alias is where it should be.
    """
    key = alias_key(pair, check_alias(alias))
    while True:
        last = _last(storage, pair, alias)
        before = None if last is None else last[0].after
        intent = decide(before)
        if last is not None:
            _log(storage, last[0])
            if before == intent.after:
                return last[0]
        move = Move(
            pair=pair,
            alias=alias,
            serial=1 if last is None else last[0].serial + 1,
            before=before,
            after=intent.after,
            time=now(),
            by=identity(),
            forced=intent.forced,
            reason=intent.reason,
            gate=intent.gate,
        )
        data = _to_bytes(move)
        if storage.create(key, data) if last is None else storage.replace(key, data, last[1]):
            _log(storage, move)
            return move


def wish(intent: Intent) -> Callable[[int | None], Intent]:
    """A decision that does not depend on where the alias is."""

    def decide(current: int | None) -> Intent:
        del current
        return intent

    return decide


def expecting(wanted: int | None, intent: Intent) -> Callable[[int | None], Intent]:
    """A decision that holds only while the alias has a certain version; ConflictError otherwise."""

    def decide(current: int | None) -> Intent:
        if current != wanted:
            raise ConflictError(f"alias: has version {current}, not {wanted}; somebody else moved it")
        return intent

    return decide


def moves(storage: Storage, pair: str) -> list[Move]:
    """All moves of all aliases of a pair, by time. DataError when one is missing from the log."""
    check_pair(pair)
    # Aliases first: the log then holds every move before the ones we saw.
    last = [_last(storage, pair, name) for name in _names(storage, pair)]
    keys = [entry.key for entry in storage.entries(history_prefix(pair))]
    logged = in_parallel(lambda key: _read(storage, key), keys)
    found = {(move.alias, move.serial): move for move in logged if move is not None}
    for move, _ in filter(None, last):
        found.setdefault((move.alias, move.serial), move)
        _check_chain([found.get((move.alias, n)) for n in range(1, move.serial + 1)], move)
    return sorted(found.values(), key=lambda move: (move.time, move.alias, move.serial))


def _check_chain(chain: list[Move | None], last: Move) -> None:
    """Every move begins where the one before it ended."""
    before: int | None = None
    for number, move in enumerate(chain, start=1):
        if move is None or move.before != before:
            raise DataError(f"{last.pair}@{last.alias}: move {number} of {last.serial} is missing from the history")
        before = move.after


def _last(storage: Storage, pair: str, alias: str) -> tuple[Move, str] | None:
    """The last move of an alias and the token of its file."""
    key = alias_key(pair, alias)
    stored = storage.read(key)
    if stored is None:
        return None
    move = _from_bytes(stored.data, f"{storage.url}/{key}")
    if (move.pair, move.alias) != (pair, alias):
        raise DamagedError(f"{storage.url}/{key}: is the alias {move.pair}@{move.alias}")
    return move, stored.token


def _names(storage: Storage, pair: str) -> list[str]:
    """Names of the aliases there are or were, sorted; files of somebody else's making are left out."""
    names = sorted(name.removesuffix(".json") for name in storage.names(alias_prefix(pair)) if name.endswith(".json"))
    return [name for name in names if is_alias(name)]


def _read(storage: Storage, key: str) -> Move | None:
    stored = storage.read(key)
    return None if stored is None else _from_bytes(stored.data, f"{storage.url}/{key}")


def _log(storage: Storage, move: Move) -> None:
    storage.create(history_key(move.pair, move.alias, move.serial), _to_bytes(move))


def _to_bytes(move: Move) -> bytes:
    return seal({"schema": _SCHEMA, **encode(move)})


def _from_bytes(data: bytes, where: str) -> Move:
    return decode(Move, check_schema(unseal(data, where), _SCHEMA, where), where)
