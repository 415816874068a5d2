"""Weights that ZeRO-3 divides among two processes are sent whole."""

import os
import subprocess
import sys

import pytest

WORKER = """
import os
import sys
import deepspeed
import torch
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # or it is compiled first
deepspeed.init_distributed("gloo")
from test_weight_sync import small
from prmkit.engines.vllm.weight_sync import iter_weights
from prmkit.models.lora import LoraSpec, add_lora, merged_state_dict
from prmkit.models.sharding import whole

lora = sys.argv[1] == "lora"


def make():
    model = small(True)
    if lora:
        add_lora(model.base_model, LoraSpec(r=2), seed=1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.5)
    return model


wanted = merged_state_dict(make())
model = make()
deepspeed.zero.Init(module=model, config_dict_or_path={"train_batch_size": 2, "zero_optimization": {"stage": 3}})
assert all(parameter.numel() == 0 for parameter in model.parameters())


def check():
    found = {name: tensor.clone() for name, tensor in iter_weights(model)}
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


check()
assert all(parameter.numel() == 0 for parameter in model.parameters())  # divided again
with whole(model.parameters()):  # as a strategy holds them around rollouts
    check()
    assert all(parameter.numel() > 0 for parameter in model.parameters())
print("same", flush=True)
torch.distributed.destroy_process_group()
os._exit(0)  # now and then a thread of DeepSpeed's or gloo's ends an interpreter that shuts down with SIGABRT
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_divided_weights_are_sent_whole(kind, tmp_path):
    pytest.importorskip("deepspeed")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    path = [os.path.dirname(__file__), *sys.path]  # noqa: PTH120
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same") == 2
