"""`prm doctor`: what is installed against what is supported, which devices there are, what is missing and how to get.

The supported ranges are those of the installed package's own metadata; they are written nowhere else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from prmkit.cli.outputs import why_not_writable
from prmkit.cli.plain_parser import PlainParser
from prmkit.engines.config import HttpConfig
from prmkit.errors import PrmkitError
from prmkit.plugins import plugin_states

__all__ = ["LIGHT", "Package", "inspect_packages", "light_requirements", "parser", "run"]

Status = Literal["ok", "missing", "out of range"]

USER_ERROR = 2

_REMARKS = {
    "vllm": "pins torch and transformers exactly: usually better as a server in an environment of its own",
    "deepspeed": "for training on many GPUs",
    "wandb": "for logging to Weights & Biases",
}
_DEVELOPMENT = "dev"
# What listing, pulling, publishing, converting and checking need. After `pip install --no-deps prmkit` they are enough.
LIGHT = (
    "fsspec", "huggingface-hub", "jsonargparse", "numpy", "omegaconf", "packaging", "pyyaml", "rich", "safetensors",
    "shtab", "typing-extensions",
)  # fmt: skip
_ENDPOINT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Package:
    """One dependency and what is installed of it.

    Attributes:
        name: distribution name.
        supported: version range, e.g. ">=2.13,<2.15".
        installed: version found; None when there is none.
        extra: the optional part it belongs to; None for a required package.
        status: whether the installed version is in the range.
    """

    name: str
    supported: str
    installed: str | None
    extra: str | None
    status: Status

    @property
    def command(self) -> str | None:
        """What to type to get a version that is supported; None when nothing needs doing."""
        return None if self.status == "ok" else f"pip install '{self.name}{self.supported}'"


def inspect_packages(
    requirements: Sequence[str] | None = None, installed: Mapping[str, str | None] | None = None
) -> list[Package]:
    """Every dependency of prmkit, required ones first; those of development are left out.

    Args:
        requirements: requirement lines with their `extra` markers; None takes those of the installed prmkit.
        installed: versions by distribution name; None asks the environment.
    """
    from packaging.requirements import Requirement

    lines = requirements if requirements is not None else importlib.metadata.requires("prmkit") or []
    packages: list[Package] = []
    for requirement in map(Requirement, lines):
        extra = _extra(str(requirement.marker)) if requirement.marker else None
        if extra == _DEVELOPMENT:
            continue
        version = _version(requirement.name) if installed is None else installed.get(requirement.name)
        status: Status = "missing"
        if version is not None:
            status = "ok" if requirement.specifier.contains(version, prereleases=True) else "out of range"
        supported = ",".join(sorted(map(str, requirement.specifier), reverse=True))  # the lower bound first
        packages.append(Package(requirement.name, supported, version, extra, status))
    return sorted(packages, key=lambda package: (package.extra is not None, package.extra or ""))


def light_requirements(lines: Sequence[str]) -> list[str]:
    """The requirements of a light installation among all; `packaging` is not needed to find them."""
    names = {line: re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in lines if ";" not in line}
    return [line for line, name in names.items() if name in LIGHT]


def _extra(marker: str) -> str | None:
    """Name of the extra in a marker such as `extra == "wandb"`."""
    _, found, rest = marker.partition("extra == ")
    return rest.strip().split()[0].strip("\"'") if found else None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    """CPU cores and memory this process may use, and what torch sees of accelerators."""
    found: dict[str, Any] = {
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "cuda": [],
        "mps": False,
    }
    try:
        import torch
    except ImportError as error:
        return {**found, "torch_error": str(error)}
    found["torch_threads"] = torch.get_num_threads()
    found["mps"] = torch.backends.mps.is_available()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found["cuda"].append(
            {
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "bf16": properties.major >= 8,  # in hardware, from Ampere on
            }
        )
    return found


def _memory_gib() -> float | None:
    """Memory this process may use, in GiB: the machine's, or its control group's limit where that is lower."""
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    group = Path("/sys/fs/cgroup/memory.max")
    if group.is_file() and (text := group.read_text().strip()).isdigit():
        limits.append(int(text))
    return round(min(limits) / 2**30, 1)


def _runs_folder(folder: Path) -> dict[str, Any]:
    """Whether results can be written to a folder that is there or can be made; nothing is left behind."""
    reason = why_not_writable(folder)
    return {"path": str(folder), "writable": reason is None, "reason": reason}


def _ask_endpoint(url: str) -> dict[str, Any]:
    """What a server says that it serves, or why it does not answer."""
    from prmkit.engines.remote.client import HttpClient

    models: list[str] = []

    async def probe(client: HttpClient, address: str) -> None:
        listed = (await client.ask(address, "/v1/models")).get("data")
        models.extend(str(card.get("id")) for card in listed or [] if isinstance(card, Mapping))

    try:
        client = HttpClient(HttpConfig([url], timeout=_ENDPOINT_SECONDS, connect_timeout=_ENDPOINT_SECONDS), probe)
        client.open()
        client.close()
    except PrmkitError as error:
        return {"url": url, "models": [], "reason": str(error)}
    return {"url": url, "models": models, "reason": None if models else "/v1/models lists no model"}


def _report(runs: Path, endpoints: Sequence[str] = ()) -> dict[str, Any]:
    packages = inspect_packages()
    return {
        "endpoints": [_ask_endpoint(url) for url in endpoints],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "prmkit": importlib.metadata.version("prmkit"),
        "packages": [{**asdict(package), "command": package.command} for package in packages],
        "devices": _devices(),
        "runs": _runs_folder(runs),
        "plugins": plugin_states(),
        "problems": _problems(packages),
    }


def _problems(packages: Sequence[Package]) -> list[str]:
    """One line for each required package that is missing or out of range."""
    return [
        f"{package.name}: {_state(package.installed)}, supported {package.supported}. Get it with: {package.command}"
        for package in packages
        if package.extra is None and package.status != "ok"
    ]


def _state(installed: str | None) -> str:
    return f"version {installed} installed" if installed else "not installed"


def _print(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"prmkit {report['prmkit']}, Python {report['python']}, {report['platform']}", highlight=False)
    table = Table("package", "installed", "supported", "state", box=None, pad_edge=False, header_style="bold")
    for package in report["packages"]:
        state = package["status"]
        if package["extra"]:
            state = "ok (optional)" if state == "ok" else f"optional, {state}: {package['command']}"
        colour = {"ok": "green", "missing": "yellow", "out of range": "yellow"}[package["status"]]
        if package["status"] != "ok" and not package["extra"]:
            colour = "red"
        table.add_row(package["name"], package["installed"] or "-", package["supported"], f"[{colour}]{state}[/]")
    console.print(table)
    for package in report["packages"]:
        if package["status"] != "ok" and package["name"] in _REMARKS:
            console.print(f"{package['name']}: {_REMARKS[package['name']]}", highlight=False)
    for line in _device_lines(report["devices"]):
        console.print(line, highlight=False)
    runs = report["runs"]
    console.print(f"{runs['path']}: " + ("writable" if runs["writable"] else f"[red]not writable: {runs['reason']}[/]"))
    for endpoint in report["endpoints"]:
        served = f"serves {', '.join(endpoint['models'])}"
        console.print(f"{endpoint['url']}: {served}" if endpoint["models"] else endpoint["reason"], highlight=False)
    for plugin in report["plugins"]:
        about = f"plugin {plugin['name']} of {plugin['package']} {plugin['version']}"
        console.print(f"{about}: ok" if plugin["state"] == "ok" else f"[red]{plugin['state']}[/]", highlight=False)
    for problem in report["problems"]:
        console.print(f"[red]{problem}[/]", highlight=False)
    console.print("[red]not ready[/]" if _failed(report) else "[green]ready[/]")


def _device_lines(devices: Mapping[str, Any]) -> list[str]:
    memory = f", {devices['memory_gib']} GiB memory" if devices["memory_gib"] is not None else ""
    threads = f", {devices['torch_threads']} torch threads" if "torch_threads" in devices else ""
    lines = [f"CPU: {devices['cpu_cores']} cores{memory}{threads}"]
    for index, device in enumerate(devices["cuda"]):
        bf16 = "bf16" if device["bf16"] else "no bf16"
        lines.append(f"CUDA {index}: {device['name']}, {device['memory_gib']} GiB, {bf16}")
    if not devices["cuda"]:
        lines.append("CUDA: none; everything runs on the CPU, small models in minutes")
    if devices["mps"]:
        lines.append("MPS: available (--trainer.accelerator mps)")
    if "torch_error" in devices:
        lines.append(f"torch cannot be imported: {devices['torch_error']}")
    return lines


def _failed(report: Mapping[str, Any]) -> bool:
    silent = any(endpoint["reason"] for endpoint in report["endpoints"])
    broken = bool(report["problems"]) or "torch_error" in report["devices"]
    broken = broken or any(plugin["state"] != "ok" for plugin in report["plugins"])
    return silent or broken or not report["runs"]["writable"]


def parser() -> PlainParser:
    """The command's parser."""
    made = PlainParser(
        prog="prm doctor",
        description="What is installed against what is supported, which devices there are, which optional parts are "
        "missing and how to get them. Ends with status 2 when a required part is missing or out of range, or when an "
        "endpoint does not answer.",
    )
    made.add_argument(
        "--light",
        action="store_true",
        help="print what a light installation needs, a requirement a line: enough to list, pull and convert",
    )
    made.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    made.add_argument("--runs", type=Path, default=Path("runs"), help="folder for results (default: %(default)s)")
    made.add_argument(
        "--endpoint", action="append", default=[], metavar="URL", help="ask a server what it serves; may be repeated"
    )
    return made


def run(argv: Sequence[str]) -> int:
    """`prm doctor`. Returns 0, or 2 when a required part is missing, out of range, an endpoint does not
    answer, or `--runs` is not writable."""
    arguments = parser().parse_args(argv)
    if arguments.light:
        print("\n".join(light_requirements(importlib.metadata.requires("prmkit") or [])))
        return 0
    report = _report(arguments.runs, arguments.endpoint)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return USER_ERROR if _failed(report) else 0
