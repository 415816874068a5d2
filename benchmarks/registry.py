"""The registry on this machine's disk: speed against plain copying, listing, many publishers, kills.

    python benchmarks/registry.py [--gigabytes 2] [--repeats 3] [--processes 8] [--each 200] [--kills 100]

Everything happens in one temporary folder (`--folder` names its parent) on the disk that is measured.

Written to results/registry.json:

- publish_vs_copy: seconds to hash the files (SHA-256) and then copy them (copyfile and fsync), file after file, divided
  by the seconds to publish them; `pull_vs_copy` the same for a pull; medians. Above 1 the registry is the faster one.
- list_seconds_1000_versions: `prm pairs list` of 1,000 versions, start of the interpreter included; median.
- concurrent_publishes: processes that publish and move one alias at the same time; distinct versions, moves in an
  unbroken chain, problems that `verify` finds.
- kills_survived: SIGKILLs at random moments of publishing and pulling after which the registry verified clean and the
  collection of garbage left nothing; of `kills`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# This file has the name of the package it measures; its folder, which Python puts first, has to come last.
sys.path.append(sys.path.pop(0))

MIB = 2**20


def write_model(folder: Path, kind: str, size: int) -> Path:
    """A model folder with one weight file of about `size` random bytes."""
    from prmkit.formats.presets import get_step_format

    folder.mkdir(parents=True)
    tensors: dict[str, Any] = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    header = json.dumps(tensors).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for start in range(0, size, 16 * MIB):
            file.write(os.urandom(min(16 * MIB, size - start)))
        file.flush()
        os.fsync(file.fileno())
    tokenizer = {"added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "config.json").write_text(json.dumps({"architectures": ["Qwen2ForCausalLM"], "kind": kind}))
    get_step_format("plain").save(folder)
    return folder


def hash_and_copy(files: list[Path], target: Path) -> None:
    """What any copy that can be trusted has to do, in the plainest way."""
    from registry.storage.transfer import hash_file

    target.mkdir()
    for number, file in enumerate(files):
        hash_file(file)
        copy = target / str(number)
        shutil.copyfile(file, copy)
        with copy.open("rb") as handle:
            os.fsync(handle.fileno())


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def transfer(folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """Medians of copying, publishing and pulling, interleaved so that all meet the same machine."""
    from registry import Publication, Registry

    policy, prm = (write_model(folder / kind, kind, size // 2) for kind in ("policy", "prm"))
    files = [*policy.iterdir(), *prm.iterdir()]
    times: dict[str, list[float]] = {"copy": [], "publish": [], "pull": []}
    for number in range(repeats):
        store = Registry(folder / f"store{number}")
        publication = Publication("math", policy, prm)
        times["copy"].append(seconds(lambda: hash_and_copy(files, folder / "copy")))
        times["publish"].append(seconds(lambda: store.publish(publication)))  # noqa: B023 - called at once
        times["pull"].append(seconds(lambda: store.pull("math", folder / "pulled")))  # noqa: B023
        for place in (folder / "copy", folder / "pulled", Path(store.storage.url)):
            shutil.rmtree(place)
    middle = {name: statistics.median(values) for name, values in times.items()}
    print(", ".join(f"{name} {value:.2f} s" for name, value in middle.items()))
    return {
        "publish_vs_copy": round(middle["copy"] / middle["publish"], 3),
        "pull_vs_copy": round(middle["copy"] / middle["pull"], 3),
        "seconds": {name: round(value, 3) for name, value in middle.items()},
    }


def listing(folder: Path, repeats: int) -> float:
    """Median seconds of `prm pairs list` with 1,000 versions."""
    from registry import Publication, Registry

    store = Registry(folder / "listed")
    policy, prm = write_model(folder / "p", "policy", 1000), write_model(folder / "q", "prm", 1000)
    first = store.publish(Publication("math", policy, prm))
    versions = Path(store.storage.url) / "pairs/math/versions"
    for number in range(2, 1001):
        (versions / f"{number}.json").write_bytes(
            replace(first, version=number, parent=f"math@{number - 1}").to_bytes()
        )
    command = [sys.executable, "-m", "prmkit.cli", "pairs", "list", "--registry", store.storage.url]
    taken = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(max(5, repeats))]
    return round(statistics.median(taken), 3)


def publish_many(url: str, policy: Path, prm: Path, each: int) -> None:
    """Child: publish, and move one alias, again and again."""
    from registry import Publication, Registry

    store = Registry(url)
    for _ in range(each):
        store.set_alias(store.publish(Publication("math", policy, prm)).ref, "newest")


def concurrent(folder: Path, processes: int, each: int) -> dict[str, Any]:
    from registry import Registry

    policy, prm = write_model(folder / "a", "policy", 10_000), write_model(folder / "b", "prm", 10_000)
    store = Registry(folder / "shared")
    command = [sys.executable, __file__, "--child", "publish", "--each", str(each)]
    command += ["--folder", str(folder / "shared"), "--models", str(policy), str(prm)]
    start = time.perf_counter()
    workers = [subprocess.Popen(command) for _ in range(processes)]
    failed = sum(worker.wait() != 0 for worker in workers)
    taken = time.perf_counter() - start
    moves = sorted(store.history("math"), key=lambda move: move.serial)
    unbroken = [m.before for m in moves] == [None, *(m.after for m in moves[:-1])]
    return {
        "processes": processes,
        "wanted": processes * each,
        "versions": len(set(store.versions("math"))),
        "moves": len(moves) if unbroken else 0,
        "failed_processes": failed,
        "problems": len(store.verify().problems),
        "versions_per_second": round(processes * each / taken, 1),
    }


def churn(url: str, policy: Path, prm: Path, folder: Path) -> None:
    """Child: publish something new and pull it, for ever; says what it begins."""
    from registry import Publication, Registry

    store = Registry(url)
    new = folder / "new"
    shutil.copytree(policy, new, dirs_exist_ok=True)
    while True:
        (new / "small.txt").write_bytes(os.urandom(2 * MIB))
        (new / "large.txt").write_bytes(os.urandom(9 * MIB))
        print("publish", flush=True)
        manifest = store.publish(Publication("math", new, prm), alias="candidate")
        print("pull", flush=True)
        store.pull(manifest.ref, folder / "pulled")


def kill(folder: Path, kills: int) -> int:
    """How many kills the registry survived."""
    from registry import Publication, Registry

    policy, prm = write_model(folder / "c", "policy", 10_000), write_model(folder / "d", "prm", 10_000)
    store = Registry(folder / "killed")
    store.publish(Publication("math", policy, prm))
    command = [sys.executable, __file__, "--child", "churn", "--folder", str(folder / "killed")]
    command += ["--models", str(policy), str(prm)]
    generator = random.Random(0)
    survived = 0
    for _ in range(kills):
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        wanted = generator.choice(["publish", "pull"])
        assert worker.stdout is not None
        if f"{wanted}\n" not in worker.stdout:  # reads on until it comes, or the worker ends
            raise RuntimeError("the worker ended by itself")
        time.sleep(generator.uniform(0, 0.15))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        sound = store.verify().ok
        store.collect_garbage(patience=0)
        survived += sound and store.collect_garbage(dry_run=True).size == 0 and store.verify().ok
    return survived


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the pair (10^9 bytes)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--each", type=int, default=200, help="versions a process publishes")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="work below this folder (default: the system's temporary one)")
    parser.add_argument("--child", choices=("publish", "churn"), help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child == "publish":
        publish_many(str(arguments.folder), *arguments.models, arguments.each)
        return
    if arguments.child == "churn":
        churn(str(arguments.folder), *arguments.models, arguments.folder.parent)
        return
    from _environment import write_result

    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        speed = transfer(folder, int(arguments.gigabytes * 1e9), arguments.repeats)
        figures = {
            "publish_vs_copy": speed["publish_vs_copy"],
            "pull_vs_copy": speed["pull_vs_copy"],
            "list_seconds_1000_versions": listing(folder, arguments.repeats),
            "concurrent_publishes": concurrent(folder, arguments.processes, arguments.each),
            "kills_survived": kill(folder, arguments.kills),
        }
    protocol = {
        "gigabytes": arguments.gigabytes,
        "repeats": arguments.repeats,
        "kills": arguments.kills,
        "seconds": speed["seconds"],
    }
    print(json.dumps(figures, indent=2))
    print(write_result("registry", figures, ("prmkit",), protocol=protocol))


if __name__ == "__main__":
    main()
