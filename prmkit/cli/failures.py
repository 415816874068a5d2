"""How a command ends for a user: one line for what a user can mend, and output that every terminal can show.

`PrmkitError` says itself what is wrong. Here are the errors of other libraries that users cause: files, networks,
broken model files, memory. What is not known here is a defect and keeps its traceback. Nothing heavy is imported: a
library's errors are known by the name of their module.
"""

from __future__ import annotations

import codecs
import errno
import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path
from types import TracebackType

__all__ = ["explain", "one_line", "readable_output"]

_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "aiohttp", "huggingface_hub", "datasets.exceptions", "botocore")
_REMEDIES = {
    errno.ENOSPC: "Free space there or name another place; what is written so far stays.",
    errno.EDQUOT: "Free space there or name another place; what is written so far stays.",
    errno.EACCES: "Name a place that this user may use.",
    errno.EPERM: "Name a place that this user may use.",
    errno.EROFS: "Name a place that can be written.",
}
_ASCII = {"±": "+-", "…": "...", "→": "->", "×": "x", "≥": ">=", "≤": "<=", "–": "-", "—": "-", "·": "."}
_PATH_NAMES = ("path", "file", "filename", "folder", "checkpoint", "checkpoint_file", "resolved_config_file")


def one_line(text: str) -> str:
    """The text with its line breaks and indentation as single spaces."""
    return " ".join(part for part in map(str.strip, text.splitlines()) if part)


def explain(error: BaseException) -> str | None:
    """One line about an error of a library that a user can mend; None for anything else, which is a defect."""
    name, message = type(error).__name__, one_line(str(error))
    modules = {kind.__module__ for kind in type(error).__mro__}
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if any(module == known or module.startswith(f"{known}.") for module in modules for known in _NETWORK):
        return f"{message or name} ({name}). Check the name and the network, or give a local copy."
    if name in ("SafetensorError", "JSONDecodeError") or isinstance(error, json.JSONDecodeError):
        kind = "JSON" if "JSON" in name else "safetensors file"
        where = _path_in(error.__traceback__)
        return f"{where or 'a file'}: not a readable {kind}: {message}"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError":
        return f"out of memory: {message or 'the process got none'}. Take smaller batches or a smaller model."
    return _system_error(error, message) if isinstance(error, OSError) else None


def _system_error(error: OSError, message: str) -> str | None:
    """What the system refused, by path. Libraries raise the same class with text only: that text."""
    if error.errno is None:
        return message or None
    if error.filename is None and error.errno not in _REMEDIES:
        return None
    paths = [path for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    where = " and ".join(map(os.fsdecode, paths))
    parts = (f"{where}:" if where else "", f"{error.strerror}.", _REMEDIES.get(error.errno))
    return " ".join(part for part in parts if part)


def _missing_package(error: ModuleNotFoundError) -> str | None:
    """A package that prmkit depends on and that is not installed, in a light installation say."""
    package = (error.name or "").partition(".")[0].replace("_", "-").lower()
    try:
        lines = importlib.metadata.requires("prmkit") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in lines:
        requirement = line.partition(";")[0].strip()
        if re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() == _DISTRIBUTIONS.get(package, package):
            return f"{package}: not installed, and this command needs it. Get it with: pip install '{requirement}'"
    return None


_DISTRIBUTIONS = {"yaml": "pyyaml"}


def _path_in(trace: TracebackType | None) -> str | None:
    """The file that was being read, from the innermost call that has one in a variable named like a path."""
    found = None
    while trace is not None:
        for name in _PATH_NAMES:
            value = trace.tb_frame.f_locals.get(name)
            if isinstance(value, str | Path) and Path(value).is_file():
                found = str(value)
        trace = trace.tb_next
    return found


def _replace(error: UnicodeError) -> tuple[str, int]:
    """An encoder's error handler: signs outside of the terminal's character set by what is nearest to them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_ASCII.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


def readable_output() -> None:
    """Have standard output and error show what they can in place of failing: an ASCII terminal, half a character."""
    codecs.register_error("prmkit.nearest", _replace)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="prmkit.nearest")
