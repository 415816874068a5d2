"""Errors a user can act on.

Every error prmkit raises on purpose derives from `PrmkitError`; the command line prints its message without a
traceback and exits with status 2. A message names the field (or file and line), the value got, what is accepted
and the remedy.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "EngineLostError",
    "MissingDependencyError",
    "PluginError",
    "PrmkitError",
    "ServerError",
    "StepFormatError",
]


class PrmkitError(Exception):
    """Base of all errors that a user caused and can mend."""


class ConfigError(PrmkitError):
    """A configuration value that cannot be used.

    Args:
        field: full dotted path of the field, e.g. `annotate.rollouts`.
        got: the value found there.
        accepted: what would have been accepted, in words.
        remedy: what to do about it; optional when `accepted` already says so.
    """

    def __init__(self, field: str, got: object, accepted: str, remedy: str = "") -> None:
        tail = f" {remedy}" if remedy else ""
        super().__init__(f"{field}: got {got!r}; accepted: {accepted}.{tail}")
        self.field = field


class DataError(PrmkitError):
    """A file or record that cannot be used. The message starts with `file:line` where there is one."""


class StepFormatError(PrmkitError):
    """A step format that does not fit a tokenizer, a model or the data."""


class MissingDependencyError(PrmkitError):
    """An optional package is needed and not installed; the message holds the command that installs it."""


class PluginError(PrmkitError):
    """A part from outside that cannot be registered, or a plugin that cannot be imported; the message names it."""


class ServerError(PrmkitError):
    """A server refused one request, or failed on it every time. Says nothing about other requests."""


class EngineLostError(PrmkitError):
    """An engine or scorer is gone, or what it answers cannot be trusted: no problem can go on.

    Commands that set single failed problems aside end at this one; what they have written stays, and they go on from
    there when they are started again.
    """
