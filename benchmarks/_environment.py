"""What every result file says of where its figures come from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prmkit.io import write_json

RESULTS = Path(__file__).parent / "results"


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of the packages named."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def machine() -> dict[str, Any]:
    """Processor, cores in use and memory, without names of hosts or people."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
    }


def write_result(name: str, figures: dict[str, Any], packages: tuple[str, ...], **more: Any) -> Path:
    """Write `results/<name>.json` with figures, versions and machine; returns its path."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"figures": figures, **more, "versions": versions(*packages), "machine": machine()})
    return path
