"""Checkpoints are complete or invisible: folders of shards, their marker, and the choice of the newest."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from prmkit.checkpoints import (
    MARKER,
    TRAINER_FILE,
    ShardedCheckpoint,
    newest_checkpoint,
    publish_folder,
    read_sharded,
    remove_checkpoint,
    remove_leftovers,
    steps_taken,
    temporary_name,
)
from prmkit.checkpoints.sharded import check_pickles, sharded_state
from prmkit.errors import ConfigError, PrmkitError


def publish(target: Path, step: int, size: int = 1000) -> Path:
    temporary = temporary_name(target, f"{step}")
    (temporary / "shards").mkdir(parents=True)
    for rank in range(2):
        (temporary / "shards" / f"{rank}.pt").write_bytes(bytes([step % 256]) * size)
    publish_folder(temporary, target, ShardedCheckpoint("deepspeed", 2, 2, step))
    return target


def test_a_published_folder_says_what_it_holds(tmp_path):
    target = publish(tmp_path / "a.ckpt", 7)
    assert read_sharded(target) == ShardedCheckpoint("deepspeed", stage=2, processes=2, global_step=7)
    assert json.loads((target / MARKER).read_text())["files"] == {"shards/0.pt": 1000, "shards/1.pt": 1000}
    publish(target, 8)
    assert read_sharded(target).global_step == 8
    assert (target / "shards" / "1.pt").read_bytes() == bytes([8]) * 1000
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]
    remove_checkpoint(target)
    assert list(tmp_path.iterdir()) == []


def shorten(folder: Path) -> None:
    (folder / "shards" / "1.pt").write_bytes(b"half")


def lose(folder: Path) -> None:
    (folder / "shards" / "0.pt").unlink()


def unmark(folder: Path) -> None:
    (folder / MARKER).unlink()


def garble(folder: Path) -> None:
    (folder / MARKER).write_text("{")


@pytest.mark.parametrize(
    ("damage", "says"),
    [(shorten, "1.pt is 4 bytes"), (lose, "0.pt is not there"), (unmark, "has no checkpoint.json"), (garble, MARKER)],
)
def test_damaged_folders_are_skipped_and_refused(tmp_path, damage, says):
    good, bad = publish(tmp_path / "good.ckpt", 5), publish(tmp_path / "bad.ckpt", 6)
    os.utime(good / MARKER, (1000, 1000))
    assert newest_checkpoint([tmp_path]) == bad
    damage(bad)
    with pytest.warns(UserWarning, match=r"bad\.ckpt: not a complete checkpoint; skipped"):
        assert newest_checkpoint([tmp_path]) == good
    with pytest.raises(PrmkitError, match=says):
        read_sharded(bad)


def test_files_and_folders_compete_by_when_they_were_written(tmp_path):
    folder = publish(tmp_path / "folder.ckpt", 5)
    file = tmp_path / "file.ckpt"
    torch.save({"state_dict": {}, "global_step": 3}, file)
    for path, seconds in ((folder / MARKER, 1000), (file, 2000)):
        os.utime(path, (seconds, seconds))
    with pytest.warns(UserWarning, match=r"file\.ckpt: written last, after 3 steps; .*folder\.ckpt has 5\. If a copy"):
        assert newest_checkpoint([tmp_path]) == file
    os.utime(folder / MARKER, (2000, 2000))
    assert newest_checkpoint([tmp_path]) == folder  # more steps


def test_leftovers_are_invisible_and_swept(tmp_path):
    half = temporary_name(tmp_path / "a.ckpt", "x")
    (half / "shards").mkdir(parents=True)
    temporary_name(tmp_path / "b.ckpt", "y").write_bytes(b"half")
    keep = publish(tmp_path / "c.ckpt", 1)
    assert newest_checkpoint([tmp_path]) == keep
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [keep]


WRITER = """
import sys
from pathlib import Path
from prmkit.checkpoints import ShardedCheckpoint, publish_folder, temporary_name
target, step = Path(sys.argv[1]), 0
while True:
    step += 1
    temporary = temporary_name(target, str(step))
    temporary.mkdir()
    for rank in range(2):
        (temporary / f"{rank}.pt").write_bytes(bytes([step % 256]) * 200_000)
    publish_folder(temporary, target, ShardedCheckpoint("deepspeed", 2, 2, step))
    print(step, flush=True)
"""


def test_killed_at_any_moment_there_is_a_whole_one(tmp_path):
    """A writer that replaces one name again and again is killed; the name always holds a whole checkpoint."""
    target = tmp_path / "last.ckpt"
    for number in range(10):
        remove_leftovers(tmp_path)
        command = [sys.executable, "-c", WRITER, str(target)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()  # it has written one
            time.sleep(0.003 * number)
            writer.send_signal(signal.SIGKILL)
        assert newest_checkpoint([tmp_path]) == target
        step = read_sharded(target).global_step
        assert {(target / f"{rank}.pt").read_bytes() for rank in range(2)} == {bytes([step % 256]) * 200_000}


class Code:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


def test_code_in_shards_is_seen_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "size": torch.Size([2])}, tmp_path / "good.pt")
    check_pickles([tmp_path / "good.pt"])
    torch.save({"w": Code()}, tmp_path / "bad.pt")
    with pytest.raises(
        PrmkitError, match=r"bad\.pt: refused, it holds more than tensors and plain values \(posix\.mkdir"
    ):
        check_pickles([tmp_path / "bad.pt"])
    folder = publish(tmp_path / "a.ckpt", 1)
    torch.save({"loops": Code()}, folder / TRAINER_FILE)
    with pytest.raises(PrmkitError, match=r"trainer\.pt: refused"):
        sharded_state(folder)
    assert not (tmp_path / "ran").exists()


def test_what_a_user_put_into_a_checkpoint_stays(tmp_path):
    target = tmp_path / "a.ckpt"
    publish(target, 1)
    (target / "notes.md").write_text("mine")
    with pytest.warns(UserWarning, match=r"a\.ckpt: not removed, notes\.md in it"):
        remove_checkpoint(target)
    with pytest.raises(ConfigError, match=r"a\.ckpt/notes\.md is not as prmkit wrote it"):
        publish(target, 2)
    assert (target / "notes.md").read_text() == "mine"
    assert steps_taken(target) == 1


def test_a_retired_checkpoint_goes_when_its_successor_is_there(tmp_path):
    retired = tmp_path / ".a.ckpt.x1.old"
    publish(tmp_path / "b.ckpt", 1)
    (retired / "folder").mkdir(parents=True)
    remove_leftovers(tmp_path)
    assert retired.exists()
    publish(tmp_path / "a.ckpt", 2)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt", "b.ckpt"]
