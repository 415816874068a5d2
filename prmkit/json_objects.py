"""JSON objects of a file, however they stand in it: one a line, in a list, or one after another over many lines.

Text is UTF-8, with or without a byte order mark. Lone surrogates, which no tokenizer and no writer takes, are replaced
where text enters. Every fault is a DataError that begins with file and line, and with the number of the record where
several may share a line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from prmkit.errors import DataError

__all__ = [
    "Span",
    "located",
    "one_object_a_line",
    "parse_json",
    "parse_json_line",
    "read_jsonl",
    "read_objects",
    "read_spans",
    "shown",
    "skip_mark",
]

_BLOCK = 1 << 20  # bytes read at once where objects go over several lines
_SLACK = 64  # characters at the end of a block in which a fault may be a cut through a word, number or escape
_MARK = codecs.BOM_UTF8
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAYBE_SURROGATE = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")
_SPACE = re.compile("[ \t\n\r\ufeff]*")
# What taking a malformed record apart may raise.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def shown(value: object, length: int = 80) -> str:
    """`repr` of a value from a file, for a message: cut where it is long."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):
        text = f"a {type(value).__name__} too large to show"
    return text if len(text) <= length else f"{text[: length - 3]}..."


@contextmanager
def located(where: str, what: str = "record of this kind") -> Iterator[None]:
    """Give every fault of a record its place: whatever its values raise in the block becomes a DataError `where: ...`.

    A DataError that begins with the place already is left as it is.
    """
    try:
        yield
    except DataError as error:
        if str(error).startswith(where):
            raise
        raise DataError(f"{where}: {error}") from None
    except _MALFORMED as error:
        raise DataError(f"{where}: {_fault(error, what)}") from error


def _fault(error: Exception, what: str = "") -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, ValueError) and "integer string conversion" in str(error):
        return "an integer of more than 4,300 digits"
    if isinstance(error, json.JSONDecodeError | UnicodeDecodeError):
        return str(error)
    return f"not a {what} ({type(error).__name__}: {str(error)[:200]})"


def parse_json(raw: bytes | str, where: str, what: str = "JSON") -> Any:
    """A JSON value, lone surrogates in its texts replaced. `where` (file:line) starts the message of a DataError."""
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig", "surrogatepass")
        return _mended(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: malformed {what}: {_fault(error)}") from None


def parse_json_line(line: bytes | str, where: str) -> dict[str, Any]:
    """A JSON object; see `parse_json`."""
    value = parse_json(line, where, "JSON line")
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _mended(value: Any, text: str) -> Any:
    """The value of a JSON text, lone surrogates replaced. Costs a search where there are none."""
    return _replaced(value) if _MAYBE_SURROGATE.search(text) else value


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replaced(item) for item in value]
    if isinstance(value, dict):
        return {_replaced(name): _replaced(item) for name, item in value.items()}
    return value


def read_objects(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a file, in order; the place is `file:line`, with `: record n` where objects go over lines.

    Objects stand one a line (blank lines are skipped), in a list, or one after another. A file of lines is held one
    line at a time, any other one object at a time.

    Raises:
        DataError: a missing file, or anything else in the file.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if not one_object_a_line(path):
        for span in read_spans(path):
            yield span.where(path), span.value
        return
    with path.open("rb") as file:
        skip_mark(file)
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, parse_json_line(line, where)


def read_jsonl(path: str | Path) -> Iterator[dict[str, Any]]:
    """The objects of `read_objects`, without their places."""
    return (record for _, record in read_objects(path))


def one_object_a_line(path: Path) -> bool:
    """True unless the file is a list, or its first object goes over several lines or shares its line with another."""
    with path.open("rb") as file:
        skip_mark(file)
        sign = b" "
        while sign.isspace():
            sign = file.read(1)
        if sign != b"{":
            return sign != b"["
        line = file.readline()
    try:
        parse_json(sign + line, "")
    except DataError:
        try:
            next(read_spans(path), None)
        except DataError:
            return True
        return False
    return True


@dataclass(frozen=True, slots=True)
class Span:
    """An object in a file.

    Attributes:
        number: of the object in its file, from 1.
        line: where it begins, from 1.
        start, size: its bytes.
        value: the object.
    """

    number: int
    line: int
    start: int
    size: int
    value: dict[str, Any]

    def where(self, path: Path) -> str:
        return f"{path}:{self.line}: record {self.number}"


def read_spans(path: Path) -> Iterator[Span]:
    """Objects of a file that go over lines as they like: in lists, or one after another."""
    with path.open("rb") as file:
        yield from _Spans(path, file).read()


def skip_mark(file: BinaryIO) -> int:
    """Go behind the byte order mark; returns its bytes."""
    size = len(_MARK) if file.read(len(_MARK)) == _MARK else 0
    file.seek(size)
    return size


class _Spans:
    """Objects out of a text that is read block by block. `_at` is the place reached in the text that is held."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._line, self._number = "", 0, 1, 0
        self._byte = skip_mark(file)

    def read(self) -> Iterator[Span]:
        opened: int | None = None  # the line of the list that is being read
        expected: Literal["value", "value or end", "comma or end"] = "value"
        while sign := self._next_sign():
            if sign == "{" and expected != "comma or end":
                yield self._object()
                expected = "value" if opened is None else "comma or end"
            elif sign == "[" and opened is None:
                opened, expected = self._line, "value or end"
                self._advance(self._at + 1)
            elif sign == "," and expected == "comma or end":
                expected = "value"
                self._advance(self._at + 1)
            elif sign == "]" and opened is not None and expected != "value":
                opened, expected = None, "value"
                self._advance(self._at + 1)
            else:
                wanted = "',' or ']'" if expected == "comma or end" else "a JSON object"
                self._refuse(f"expected {wanted}, got {shown(self._text[self._at : self._at + 20])}", self._number + 1)
        if opened is not None:
            self._refuse(f"the list that begins in line {opened} has no end", self._number)

    def _next_sign(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._advance(match.end() if match else self._at)
            if self._at < len(self._text) or not self._fill():
                return self._text[self._at : self._at + 1]

    def _object(self) -> Span:
        number, line = self._number + 1, self._line
        while True:
            try:
                value, end = self._scan(self._text, self._at)
                break
            except json.JSONDecodeError as error:
                passed = self._text.count("\n", self._at, error.pos)
                cut = error.pos > len(self._text) - _SLACK or error.msg.startswith("Unterminated")
                if not (cut and self._fill()):
                    self._line += passed
                    self._refuse(f"malformed JSON: {error.msg}", number)
            except (ValueError, RecursionError) as error:
                self._refuse(f"malformed JSON: {_fault(error)}", number)
        self._number = number
        start, text = self._byte, self._text[self._at : end]
        self._advance(end)
        return Span(number, line, start, self._byte - start, _mended(value, text))

    def _advance(self, to: int) -> None:
        passed = self._text[self._at : to]
        self._line += passed.count("\n")
        self._byte += len(passed) if passed.isascii() else len(passed.encode("utf-8", "surrogatepass"))
        self._at = to

    def _fill(self) -> bool:
        """Hold as much text again, without what was passed; False at the end of the file."""
        raw = self._file.read(max(_BLOCK, len(self._text) - self._at))
        try:
            more = self._decode.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            self._line += self._text.count("\n", self._at) + error.object[: error.start].count(b"\n")
            self._refuse(f"malformed JSON: {error}", self._number + 1)
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(raw)

    def _refuse(self, message: str, number: int) -> NoReturn:
        raise DataError(f"{self._path}:{self._line}: record {number}: {message}") from None
