"""Checkpoints are whole or absent: failed writers, killed writers, damaged files, and which file is the newest."""

import argparse
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from callbacks.checkpoint_io import AtomicCheckpointIO, newest_checkpoint
from prmkit.errors import PrmkitError


def content(step: int, size: int = 8) -> dict:
    return {"state_dict": {"w": torch.full((size,), float(step))}, "global_step": step}


def write(path: Path, step: int, seconds: float) -> Path:
    AtomicCheckpointIO().save_checkpoint(content(step), path)
    os.utime(path, (seconds, seconds))
    return path


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("cannot be written")


def test_round_trip_and_permissions(tmp_path):
    umask = os.umask(0o027)
    try:
        AtomicCheckpointIO().save_checkpoint(content(3), tmp_path / "new" / "a.ckpt")
    finally:
        os.umask(umask)
    assert (tmp_path / "new" / "a.ckpt").stat().st_mode & 0o777 == 0o640
    loaded = AtomicCheckpointIO().load_checkpoint(tmp_path / "new" / "a.ckpt")
    assert loaded["global_step"] == 3
    assert loaded["state_dict"]["w"].tolist() == [3.0] * 8


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1), target)
    before = target.read_bytes()
    with pytest.raises(RuntimeError, match="cannot be written"):
        AtomicCheckpointIO(weights_only=False).save_checkpoint({**content(2), "bad": Unpicklable()}, target)
    assert target.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_a_killed_writer_leaves_whole_files_and_its_leftovers_are_removed(tmp_path):
    code = """
        import sys, torch
        from callbacks.checkpoint_io import AtomicCheckpointIO
        io = AtomicCheckpointIO()
        step = 0
        while True:
            step += 1
            weights = {"w": torch.full((200_000,), float(step))}
            io.save_checkpoint({"state_dict": weights, "global_step": step}, sys.argv[1])
    """
    target = tmp_path / "a.ckpt"
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(target)])
    limit = time.monotonic() + 60
    while not target.exists():
        assert writer.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.01)
    for _ in range(20):  # whole at any moment while it is being replaced
        loaded = AtomicCheckpointIO().load_checkpoint(target)
        assert set(loaded["state_dict"]["w"].tolist()) == {float(loaded["global_step"])}
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert newest_checkpoint([tmp_path]) == target

    (tmp_path / ".a.ckpt.x1.tmp").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(content(1), target)
    assert [file.name for file in tmp_path.iterdir()] == ["a.ckpt"]


def test_newest_is_the_last_written_that_is_whole(tmp_path):
    assert newest_checkpoint([tmp_path, tmp_path / "not-there"]) is None
    old = write(tmp_path / "z.ckpt", step=900, seconds=1000)
    new = write(tmp_path / "a.ckpt", step=20, seconds=2000)
    assert newest_checkpoint([tmp_path]) == new
    same_time = write(tmp_path / "b.ckpt", step=30, seconds=2000)
    assert newest_checkpoint([tmp_path]) == same_time
    other = write(tmp_path / "more" / "c.ckpt", step=1, seconds=3000)
    assert newest_checkpoint([tmp_path, tmp_path / "more"]) == other
    assert old.exists()


def truncated(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def holed(data: bytes) -> bytes:
    """The index at the end is there, the part with the structure is not: a crash before the pages were on the disk."""
    start = data.index(b"data.pkl")
    return data[:start] + bytes(512) + data[start + 512 :]


@pytest.mark.parametrize("damage", [truncated, holed, lambda data: b"", lambda data: bytes(len(data))])
def test_damaged_files_are_skipped_and_refused(tmp_path, damage):
    good = write(tmp_path / "good.ckpt", step=1, seconds=1000)
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(damage(good.read_bytes()))
    os.utime(bad, (2000, 2000))
    with pytest.warns(UserWarning, match=r"bad\.ckpt: not a complete checkpoint; skipped"):
        assert newest_checkpoint([tmp_path]) == good
    with pytest.raises(PrmkitError, match=r"bad\.ckpt: "):
        AtomicCheckpointIO().load_checkpoint(bad)


def test_files_that_are_no_checkpoints_are_skipped(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.ckpt")
    with pytest.warns(UserWarning, match=r"weights\.ckpt"):
        assert newest_checkpoint([tmp_path]) is None
    (tmp_path / ".a.ckpt.x1.tmp").write_bytes(b"half")
    (tmp_path / "weights.ckpt").unlink()
    assert newest_checkpoint([tmp_path]) is None


def test_code_is_not_loaded(tmp_path):
    torch.save({**content(1), "own": argparse.Namespace(a=1)}, tmp_path / "a.ckpt")
    with pytest.raises(PrmkitError, match="refused, it holds more than tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)["own"].a == 1
    with pytest.raises(PrmkitError, match="no such file"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")
