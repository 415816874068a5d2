"""Object after object of one source: the first settles the format, and malformed ones are left out if allowed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from prmkit.annotation.formats.detection import PARSERS, SINGLE_RECORD_FORMATS, detect_format
from prmkit.annotation.records import StepLabels
from prmkit.errors import DataError
from prmkit.json_objects import located

__all__ = ["RecordParser"]

_LOG = logging.getLogger(__name__)


class RecordParser:
    """The records in an object.

    Args:
        format: see RecordFormat; "auto" is settled by the first object and kept.
        malformed: objects that do not fit the format and may be left out, each with a warning.
    """

    def __init__(self, format: str, malformed: int = 0) -> None:
        self.format, self._allowed = format, malformed
        self._left_out: set[str] = set()

    @property
    def single(self) -> bool:
        """True if every object holds exactly one record."""
        return self.format in SINGLE_RECORD_FORMATS and not self._allowed

    def __call__(self, raw: Mapping[str, Any], where: str) -> list[StepLabels]:
        if self.format == "auto":
            self.format = detect_format(raw, where)
        try:
            with located(where):
                return PARSERS[self.format](raw, where)
        except DataError as error:
            if where not in self._left_out:
                if len(self._left_out) >= self._allowed:
                    raise
                self._left_out.add(where)
                _LOG.warning("left out, %d of at most %d: %s", len(self._left_out), self._allowed, error)
            return []

    def next_source(self, format: str) -> None:
        """Begin another source; the number of objects that may still be left out stays."""
        self.format = format
