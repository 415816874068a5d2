"""On a signal, at any moment and to any rank: one checkpoint, one status, and a run that goes on as if nothing were."""

import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from callbacks.preemption import REQUEUE, Preempted, Preemption
from prmkit.errors import ConfigError


class Signal(Callback):
    """Sends its own process a signal at a hook, as a scheduler might."""

    def __init__(self, hook, number, rank=0, which=signal.SIGTERM):
        self.left, self.rank, self.which = number, rank, which
        setattr(self, hook, self.count)

    def count(self, trainer, *args):
        self.left -= 1
        if self.left == 0 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), self.which)


@pytest.mark.parametrize(
    ("hook", "number", "which", "stopped_at"),
    [
        ("on_train_start", 1, signal.SIGTERM, ("on_train_batch_end", 0, 1)),
        ("on_before_zero_grad", 6, signal.SIGUSR1, ("on_train_batch_end", 1, 6)),
        ("on_train_batch_start", 8, signal.SIGTERM, ("on_train_batch_end", 1, 8)),
        ("on_validation_start", 1, signal.SIGTERM, ("on_validation_end", 0, 4)),
        ("on_train_epoch_end", 2, signal.SIGUSR1, ("on_train_epoch_end", 1, 8)),
    ],
)
def test_stop_and_go_on(fit, tmp_path, hook, number, which, stopped_at):
    whole, _ = fit()
    before = signal.getsignal(which)
    diary = []
    with pytest.raises(Preempted) as stopped:
        fit(callbacks=[Signal(hook, number, which=which), Preemption(str(tmp_path))], diary=diary)
    assert stopped.value.code == REQUEUE == 75
    assert [entry for entry in diary if entry[0] != "logged"][-1][:3] == stopped_at
    assert [path.name for path in tmp_path.iterdir()] == [f"preempted-{stopped_at[2]}.ckpt"]
    signal.signal(which, before)
    rest, _ = fit(resume=stopped.value.path, callbacks=[Preemption(str(tmp_path))])
    assert diary + rest == whole
    assert signal.getsignal(which) == before


def test_only_the_last_preemption_leaves_a_checkpoint(fit, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    path = None
    for step in (2, 7):
        with pytest.raises(Preempted) as stopped:
            fit(resume=path, callbacks=[Signal("on_train_batch_start", step, rank=0), Preemption(str(tmp_path))])
        path = stopped.value.path
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in tmp_path.iterdir()] == ["preempted-9.ckpt"]


def test_all_ranks_stop_behind_the_same_step(fit, tmp_path):
    """The signal reaches rank 1 only; rank 0 writes."""
    options = {"devices": 2, "strategy": "ddp_fork"}
    whole, stopped, rest = tmp_path / "whole", tmp_path / "stopped", tmp_path / "rest"
    for folder in (whole, stopped, rest):
        folder.mkdir()
    fit(whole, **options)
    with pytest.raises(Exception, match=f"exit code {REQUEUE}"):
        fit(stopped, callbacks=[Signal("on_train_batch_start", 6, rank=1), Preemption(str(stopped))], **options)
    fit(rest, stopped / "preempted-6.ckpt", callbacks=[Preemption(str(rest))], **options)
    one, other = newest(whole), newest(rest)
    assert one["global_step"] == other["global_step"] == 12
    assert torch.equal(one["state_dict"]["weight"], other["state_dict"]["weight"])
    assert one["loops"]["fit_loop"]["epoch_progress"] == other["loops"]["fit_loop"]["epoch_progress"]


def newest(folder):
    """The checkpoint with the longest diary."""
    return torch.load(max(folder.glob("[0-9]*.ckpt"), key=lambda path: int(path.stem)), weights_only=True)


def test_without_a_folder():
    with pytest.raises(ConfigError, match=r"preemption.signals.*SIGNO"):
        Preemption("folder", ["SIGNO"])


def test_ranks_that_found_different_checkpoints_are_refused(fit, tmp_path):
    """As when a folder is not shared: rank 1 starts afresh."""

    class Alone(Callback):
        def on_fit_start(self, trainer, module):
            if trainer.global_rank == 1:
                trainer._checkpoint_connector.restore_loops = lambda: None

    options = {"devices": 2, "strategy": "ddp_fork"}
    fit(tmp_path, **options)
    path = min(tmp_path.iterdir(), key=lambda path: int(path.stem))
    with pytest.raises(Exception, match="different checkpoints, of steps 0 to 1"):
        fit(resume=path, callbacks=[Alone()], **options)
