"""What can go wrong with a registry, each as an error of its own kind, so that callers can tell them apart."""

from __future__ import annotations

from prmkit.errors import DataError, PrmkitError

__all__ = [
    "BusyError",
    "ConflictError",
    "DamagedError",
    "GateRefusedError",
    "IncompatibleError",
    "NewerSchemaError",
    "NotFoundError",
]


class NotFoundError(DataError):
    """There is no such registry, pair, version, alias or file."""


class DamagedError(DataError):
    """Stored bytes are not the ones that were published. The message names the file."""


class NewerSchemaError(DataError):
    """Something was written by a newer prmkit; the message says which version reads it."""


class ConflictError(PrmkitError):
    """Somebody else changed what this change was based on, or a name is taken by other content."""


class BusyError(PrmkitError):
    """Publishers and the collection of garbage exclude each other, and the other one is at work."""


class GateRefusedError(PrmkitError):
    """An alias behind the gate was to move to a version that did not pass it.

    Attributes:
        reasons: each condition in words, the met ones too.
    """

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class IncompatibleError(PrmkitError):
    """The PRM cannot score the policy; the message holds the reasons."""
