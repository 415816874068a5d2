"""Many processes at once, and processes that are killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry import Registry

PUBLISH = """
import sys
from pathlib import Path
from registry import Publication, Registry
url, policy, prm, count, name = sys.argv[1:6]
registry = Registry(url)
for i in range(int(count)):
    manifest = registry.publish(Publication("math", Path(policy), Path(prm)))
    registry.set_alias(manifest.ref, "newest", reason=f"{name}.{i}")
    print(manifest.version, flush=True)
"""

# Publishes something new each time and pulls it, for ever. Says where it is, so that kills fall into both.
CHURN = """
import json, os, shutil, sys
from pathlib import Path
from registry import Publication, Registry
url, policy, prm, folder = sys.argv[1:5]
registry = Registry(url)
new = Path(folder) / "new"
shutil.copytree(policy, new, dirs_exist_ok=True)
while True:
    (new / "weights.txt").write_bytes(os.urandom(2_000_000))
    (new / "more.txt").write_bytes(os.urandom(9_000_000))
    print("publish", flush=True)
    manifest = registry.publish(Publication("math", new, Path(prm)), alias="candidate")
    print("pull", flush=True)
    registry.pull(manifest.ref, Path(folder) / "pulled")
"""


def start(code, *arguments):
    environment = {**os.environ, "PRMKIT_USER": f"worker{arguments[-1]}"[:20]}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def publish_at_once(registry, publication, processes, each):
    workers = [
        start(PUBLISH, registry.storage.url, publication.policy, publication.prm, each, n) for n in range(processes)
    ]
    versions = [int(line) for worker in workers for line in worker.communicate()[0].split()]
    assert [worker.returncode for worker in workers] == [0] * processes
    total = processes * each
    assert sorted(versions) == list(range(1, total + 1)) == registry.versions("math")
    assert all(registry.manifest(f"math@{n}").version == n for n in range(1, total + 1))
    # No move of the alias is lost: every one is in the log, each begins where the one before ended.
    moves = sorted(registry.history("math"), key=lambda move: move.serial)
    assert sorted(move.reason for move in moves) == sorted(f"{n}.{i}" for n in range(processes) for i in range(each))
    assert [move.serial for move in moves] == list(range(1, total + 1))
    assert [move.before for move in moves] == [None, *(move.after for move in moves[:-1])]
    assert registry.aliases("math") == {"newest": moves[-1].after}
    assert registry.verify().ok
    assert registry.collect_garbage().size == 0


def test_publishers_at_once(registry, make_publication):
    publish_at_once(registry, make_publication(), processes=4, each=10)


@pytest.mark.slow
def test_eight_publishers_of_two_hundred_versions(registry, make_publication):
    publish_at_once(registry, make_publication(), processes=8, each=200)


def kill_at_random(registry, publication, folder, kills, seed):
    """Kill a publisher and puller at random moments; the registry is sound each time, and what is left goes."""
    generator = random.Random(seed)
    left = 0
    stages = set()
    for _ in range(kills):
        worker = start(CHURN, registry.storage.url, publication.policy, publication.prm, folder)
        wanted = generator.choice(["publish", "pull"])
        assert f"{wanted}\n" in worker.stdout  # reads on until it comes, or the worker ends
        stages.add(wanted)
        time.sleep(generator.uniform(0, 0.15))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        worker.stdout.close()
        report = registry.verify()
        assert report.ok, report
        if registry.storage.size("registry.json") is not None:
            left += registry.collect_garbage(patience=0).size
            assert registry.collect_garbage().size == 0
            assert not list((registry.storage.root / "tmp").iterdir())
        assert registry.verify().ok
        pulled = Path(folder) / "pulled" / "pair.json"
        if pulled.exists():  # who finds it finds a whole pair
            number = json.loads(pulled.read_text())["version"]
            assert registry.pull(f"math@{number}", pulled.parent).copied == 0
    numbers = registry.versions("math")
    assert numbers == list(range(1, len(numbers) + 1))
    registry.history("math")
    return left


def test_kills_leave_nothing_half(registry, make_publication, tmp_path):
    publication = make_publication()
    registry.publish(publication)
    (tmp_path / "work").mkdir()
    kill_at_random(registry, publication, tmp_path / "work", kills=4, seed=0)


@pytest.mark.slow
def test_a_hundred_kills(registry, make_publication, tmp_path):
    publication = make_publication()
    registry.publish(publication)
    (tmp_path / "work").mkdir()
    assert kill_at_random(registry, publication, tmp_path / "work", kills=100, seed=1) > 0


def test_garbage_waits_for_publishers(registry, make_publication):
    from registry.errors import BusyError

    registry.publish(make_publication())
    with registry.storage.publishing(), pytest.raises(BusyError, match=r"at work for 0\.1 s"):
        registry.collect_garbage(patience=0.1)
    assert registry.collect_garbage(dry_run=True).size == 0


def test_garbage_collected_between_publications(registry, make_publication):
    """Publishers in other processes while garbage is collected again and again: nothing that is needed goes."""
    publication = make_publication()
    registry.publish(publication)
    workers = [start(PUBLISH, registry.storage.url, publication.policy, publication.prm, 8, n) for n in range(2)]
    while any(worker.poll() is None for worker in workers):
        registry.collect_garbage(patience=30)
    assert [worker.communicate() and worker.returncode for worker in workers] == [0, 0]
    assert registry.verify().ok
    assert len(registry.versions("math")) == 17


def test_a_move_whose_mover_was_killed_is_in_the_history(registry, make_publication):
    """The alias has moved and its log entry is missing: as after a kill between the two."""
    registry.publish(make_publication(), alias="candidate")
    registry.publish(make_publication(), alias="candidate")
    log = registry.storage.root / "pairs/math/history/candidate/00000002.json"
    log.unlink()
    assert [move.after for move in registry.history("math")] == [1, 2]
    registry.set_alias("math@1", "candidate")
    assert log.exists()
    assert [(m.serial, m.before, m.after) for m in registry.history("math")] == [(1, None, 1), (2, 1, 2), (3, 2, 1)]


def test_registry_of_a_fresh_process_sees_everything(registry, make_publication):
    registry.publish(make_publication(), alias="candidate")
    again = Registry(registry.storage.url)
    assert (again.pairs(), again.aliases("math")) == (["math"], {"candidate": 1})
