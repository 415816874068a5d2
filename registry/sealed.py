"""JSON files that carry their own digest, so that a flipped bit in a manifest is found like one in a weight file.

The text is indented JSON whose first field is `seal`: the SHA-256 of the whole file with 64 zeros in its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from prmkit.errors import DataError
from registry.errors import DamagedError, NewerSchemaError

__all__ = ["MANIFEST_SCHEMA", "check_schema", "seal", "unseal"]

MANIFEST_SCHEMA = 1

_HEAD = b'{\n  "seal": "'
_ZEROS = b"0" * 64
_BODY = len(_HEAD) + 64


def seal(value: Mapping[str, Any]) -> bytes:
    """The bytes of a file. The value has no field `seal`; NaN and infinity are refused (ValueError)."""
    text = json.dumps({"seal": "0" * 64, **value}, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
    plain = text.encode()
    return _HEAD + hashlib.sha256(plain).hexdigest().encode() + plain[_BODY:]


def unseal(data: bytes, where: str) -> dict[str, Any]:
    """The value of `seal`. DamagedError, which begins with `where`, when a byte differs from what was written."""
    found = data[len(_HEAD) : _BODY]
    digest = hashlib.sha256(_HEAD)
    digest.update(_ZEROS)
    digest.update(data[_BODY:])
    if not data.startswith(_HEAD) or digest.hexdigest().encode() != found:
        raise DamagedError(
            f"{where}: damaged: its content does not match its seal. Restore the file from a copy of the registry."
        )
    value: dict[str, Any] = json.loads(data)
    del value["seal"]
    return value


def check_schema(value: dict[str, Any], known: int, where: str) -> dict[str, Any]:
    """A sealed file's value without `schema`; NewerSchemaError names the prmkit that reads a newer one."""
    schema = value.pop("schema", None)
    if isinstance(schema, int) and schema > known:
        from importlib.metadata import version

        needed = value.get("requires", "a newer prmkit")
        raise NewerSchemaError(
            f"{where}: schema {schema} needs {needed}; this is prmkit {version('prmkit')}, which reads schema "
            f"{known}. Upgrade with: pip install --upgrade {json.dumps(str(needed))}"
        )
    if schema != known:
        raise DataError(f"{where}: schema: got {schema!r}; accepted: {known}")
    return value
