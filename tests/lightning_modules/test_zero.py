"""ZeRO on two gloo processes against one process: losses, resume, shards, exports. `zero_worker.py` does the fits."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from prmkit.annotation.records import StepLabels
from prmkit.checkpoints import newest_checkpoint, read_sharded
from prmkit.models import PRMModel

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is not installed")

WORKER = Path(__file__).parent / "zero_worker.py"
spec = importlib.util.spec_from_file_location("zero_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
sys.modules["zero_worker"] = worker  # dataclasses look their module up
spec.loader.exec_module(worker)
Job = worker.Job

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture
def runs(tmp_path):
    """Makes jobs with their files in one folder, and runs them: on one process here, on several under torchrun."""
    labels, demonstrations = [], []
    for number in range(29):  # the last window of an epoch is not full
        steps = 1 + number % 4
        values = tuple(float(step < steps - number % 2) for step in range(steps))
        labels.append(
            StepLabels(
                f"p{number}", f"f+{3 + number % 5},{number % 8}", "C", ("f+5=C",) * steps, values, (1,) * steps,
                "t", "", separator="\n",
            ).to_json()
        )  # fmt: skip
        demonstrations.append({"question": f"f+5,{number % 8}", "solution": "f+5=C\n" * steps})
    for name, rows in (("prm", labels), ("sft", demonstrations)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Runs:
        folder = tmp_path

        def job(self, out: str, kind: str = "prm", **values):
            for name in ("checkpoint", "resume", "export"):
                values[name] = str(tmp_path / values[name]) if values.get(name) else ""
            data = str(tmp_path / f"{kind}.jsonl") if kind in ("prm", "sft") else ""
            return Job(out=str(tmp_path / f"{out}.pt"), data=data, kind=kind, **values)

        def here(self, job):
            worker.run(job, 0, 1)
            return self.found(job)

        def start(self, *jobs, processes=2):
            listed = tmp_path / "jobs.json"
            listed.write_text(json.dumps([asdict(job) for job in jobs]))
            command = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                str(processes),
            ]
            command += [str(WORKER), str(listed)]
            return subprocess.run(command, timeout=500, capture_output=True, text=True, env=ENVIRONMENT)

        def there(self, *jobs, processes=2):
            done = self.start(*jobs, processes=processes)
            assert done.returncode == 0, done.stderr[-4000:]
            return [self.found(job) for job in jobs]

        def found(self, job):
            return torch.load(job.out, weights_only=True)

    return Runs()


def assert_same(found, wanted, loss=2e-5, weight=5e-5):
    assert found["losses"] == pytest.approx(wanted["losses"], abs=loss)
    assert found["norms"] == pytest.approx(wanted["norms"], rel=1e-3)
    assert found["state"].keys() == wanted["state"].keys()
    for name, tensor in wanted["state"].items():
        torch.testing.assert_close(found["state"][name], tensor, rtol=0, atol=weight, msg=name)


def assert_goes_on_exactly(rest, whole, start):
    assert rest["losses"] == whole["losses"][start:]
    assert rest["norms"] == whole["norms"][start:]
    for name, tensor in whole["state"].items():
        assert torch.equal(rest["state"][name], tensor), name


def test_zero_agrees_with_one_process_resumes_exactly_and_exports(runs):
    """Accumulation, clipping that bites, epochs that end in the middle of a window; ZeRO 2 and 3."""
    one = runs.here(runs.job("one", rows=4))
    assert max(one["norms"]) > 0.5  # clipped at 0.5
    assert len(one["losses"]) == 6
    two, three, rest = runs.there(
        runs.job("two", rows=2, strategy="zero2"),
        runs.job("three", rows=2, strategy="zero3", save_at=3, checkpoint="three.ckpt", export="exported"),
        runs.job("rest", rows=2, strategy="zero3", save_at=3, resume="three.ckpt"),
    )
    assert_same(two, one)
    assert_same(three, one)
    assert_goes_on_exactly(rest, three, 3)
    info = read_sharded(runs.folder / "three.ckpt")
    assert (info.stage, info.processes, info.global_step) == (3, 2, 3)
    exported = PRMModel.from_pretrained(runs.folder / "exported")
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, three["state"][f"model.{name}"]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "grpo", "ppo", "ppo-separate"])
def test_every_job_agrees_and_goes_on(runs, kind):
    one = runs.here(runs.job("one", kind, rows=4))
    jobs = []
    for strategy in ("ddp", "zero1", "zero2", "zero3"):
        jobs.append(runs.job(strategy, kind, rows=2, strategy=strategy, save_at=2, checkpoint=f"{strategy}.ckpt"))
        jobs.append(runs.job(f"{strategy}-on", kind, rows=2, strategy=strategy, save_at=2, resume=f"{strategy}.ckpt"))
    found = runs.there(*jobs)
    for whole, rest in zip(found[::2], found[1::2], strict=True):
        assert_same(whole, one)
        assert_goes_on_exactly(rest, whole, 2)


VARIANTS = {
    "lora": {"strategy": "zero3", "lora": True},
    "lora-without-frozen": {"strategy": "zero3", "lora": True, "options": {"exclude_frozen_parameters": True}},
    "lora-without-frozen-2": {"strategy": "zero2", "lora": True, "options": {"exclude_frozen_parameters": True}},
    "offload": {"strategy": "zero2", "options": {"offload_optimizer": True}},
    "offload-all": {"strategy": "zero3", "options": {"offload_optimizer": True, "offload_parameters": True}},
    "bf16": {"strategy": "zero2", "precision": "bf16-mixed"},
    "bf16-3": {"strategy": "zero3", "precision": "bf16-mixed"},
    "untied": {"strategy": "zero3", "tied": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("group", [tuple(VARIANTS)[:3], tuple(VARIANTS)[3:5], tuple(VARIANTS)[5:]])
def test_variants_go_on_exactly_and_export(runs, group):
    jobs = []
    for name in group:
        base = {"rows": 2, "save_at": 3, **VARIANTS[name]}
        jobs.append(runs.job(name, checkpoint=f"{name}.ckpt", export=f"{name}-model", **base))
        jobs.append(runs.job(f"{name}-on", resume=f"{name}.ckpt", **base))
    found = runs.there(*jobs)
    for number, name in enumerate(group):
        whole, rest = found[2 * number : 2 * number + 2]
        assert_goes_on_exactly(rest, whole, 3)
        exact = VARIANTS[name].get("precision") is None
        if exact:
            plain = {key: value for key, value in VARIANTS[name].items() if key not in ("strategy", "options")}
            assert_same(whole, runs.here(runs.job(f"{name}-one", rows=4, **plain)))
        exported = AutoModelForCausalLM.from_pretrained(runs.folder / f"{name}-model", dtype="auto").state_dict()
        for key, tensor in whole["state"].items():
            if f"{key.removeprefix('model.model.')}" in exported:  # adapters are folded in: not under their own names
                assert torch.equal(exported[key.removeprefix("model.model.")], tensor), key


@pytest.mark.slow
def test_another_number_of_processes_goes_on(runs):
    stages = ("zero1", "zero2", "zero3")
    wholes = runs.there(
        *(runs.job(s, rows=2, strategy=s, save_at=3, checkpoint=f"{s}.ckpt") for s in stages),
        runs.job("ppo", "ppo", strategy="zero3", save_at=2, checkpoint="ppo.ckpt"),
    )
    resumed = [runs.job(f"{s}-on", rows=4, strategy=s, save_at=3, resume=f"{s}.ckpt") for s in stages]
    back = runs.job("back", rows=4, strategy="zero3", save_at=3, checkpoint="back.ckpt")
    *rests, alone = runs.there(*resumed, back, processes=1)
    for whole, rest in zip(wholes, rests, strict=False):
        cut = {"losses": whole["losses"][3:], "norms": whole["norms"][3:], "state": whole["state"]}
        assert_same(rest, cut)
    (again,) = runs.there(runs.job("again", rows=2, strategy="zero3", save_at=3, resume="back.ckpt"))
    assert_same(again, {"losses": alone["losses"][3:], "norms": alone["norms"][3:], "state": alone["state"]})
    assert not list(runs.folder.glob(".*.tmp"))
    # in the middle of an iteration the experience belongs to the processes that sampled it
    refused = runs.start(runs.job("ppo-1", "ppo", strategy="zero3", resume="ppo.ckpt"), processes=1)
    assert refused.returncode != 0
    stage = runs.start(runs.job("stage", rows=2, strategy="zero2", resume="zero3.ckpt"))
    assert "written under ZeRO 3, and this run is ZeRO 2" in stage.stderr


@pytest.mark.slow
def test_killed_while_shards_are_written(runs):
    """One of two processes dies with half a shard written: the checkpoint of before is the newest, and goes on."""
    (whole,) = runs.there(runs.job("whole", rows=2, strategy="zero3", save_at=2, checkpoint="a.ckpt"))
    killed = runs.job("killed", rows=2, strategy="zero3", save_at=4, checkpoint="b.ckpt", kill_in_save=True)
    assert runs.start(killed).returncode != 0
    assert list(runs.folder.glob(".b.ckpt.*.tmp"))
    assert newest_checkpoint([runs.folder]) == runs.folder / "a.ckpt"
    on = runs.job("on", rows=2, strategy="zero3", save_at=2, resume="a.ckpt")
    again = runs.job("again", rows=2, strategy="zero3", save_at=4, checkpoint="b.ckpt")
    rest, _ = runs.there(on, again)
    assert_goes_on_exactly(rest, whole, 2)
    assert newest_checkpoint([runs.folder]) == runs.folder / "b.ckpt"
    assert not list(runs.folder.glob(".*.tmp"))


@pytest.mark.slow
def test_command_line(tmp_path):
    """Fit on two processes, export, go on with `last`, examine on one process; refusals before any work."""

    def prm(*arguments, status=0):
        command = [sys.executable, "-m", "prmkit.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, timeout=300, capture_output=True, text=True, env=ENVIRONMENT)
        assert done.returncode == status, done.stderr[-4000:]
        return done

    job = ("--config=configs/sft/quick.yaml",)
    two = (*job, "--config=configs/strategy/zero2.yaml", "--config=configs/strategy/two_cpus.yaml")
    prm("fit", *two, "--trainer.max_steps=24")
    run = tmp_path / "runs" / "quick" / "sft"
    assert read_sharded(newest_checkpoint([run / "checkpoints"])).global_step == 24
    prm("export", str(run), "exported", "--weight_version=3")
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "exported", run / "policy"))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    names = {path.name for path in (run / "policy").iterdir()}
    assert {path.name for path in (tmp_path / "exported").iterdir()} == names
    assert json.loads((tmp_path / "exported" / "prmkit.json").read_text())["weight_version"] == 3

    refused = prm("fit", *job, "--ckpt_path=last", status=2).stderr
    assert "shards of ZeRO 2 by 2 processes, and this fit does not run under ZeRO" in refused
    refused = prm("fit", *two, "--trainer.strategy.stage=3", "--ckpt_path=last", status=2).stderr
    assert "written under ZeRO 2, and this run is ZeRO 3" in refused
    assert "val/loss" in prm("validate", *job, "--ckpt_path=last").stdout

    newest = newest_checkpoint([run / "checkpoints"])
    earlier = min((run / "checkpoints").glob("*.ckpt"), key=lambda path: read_sharded(path).global_step)
    assert earlier != newest
    next((newest / "shards").glob("*optim*")).write_bytes(b"half")
    on = prm("fit", *two, "--trainer.max_steps=26", "--ckpt_path=last")
    assert f"resuming from {earlier}" in on.stderr
    shutil.rmtree(tmp_path / "exported")
    refused = prm("export", str(newest), "exported", status=2).stderr
    assert "not a complete checkpoint" in refused
    assert not (tmp_path / "exported").exists()
