"""The work behind `prm estimate`. Imports torch; `prmkit.cli.estimate` decides when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from prmkit.errors import ConfigError, DataError
from prmkit.models.lora import LoraSpec
from prmkit.models.policy import prepare_training
from prmkit.models.source import ModelSource, from_config, load_tokenizer, make_config, read_config, resolve_source
from prmkit.scaling import (
    DEVICES,
    DecoderShape,
    Device,
    Division,
    activation_bytes,
    logit_bytes,
    state_bytes,
    step_seconds,
)
from prmkit.steps import StepFormat, get_step_format

__all__ = ["estimate", "meta_model"]

_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_USUAL_LENGTH = 1024


@dataclass(frozen=True)
class _Job:
    """What of a config decides memory and time."""

    kind: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    source: ModelSource
    division: Division

    @property
    def mixed(self) -> bool:
        return self.division.mixed


def estimate(config: Mapping[str, Any], gpu: str, utilisation: float, tokens: int | None = None) -> dict[str, Any]:
    """Memory by part and time of a step, as JSON values; bytes and seconds.

    Args:
        config: merged and resolved.
        gpu: one of `DEVICES`; not looked at where trainer.accelerator is cpu.
        utilisation: share of the device's peak that is reached, in (0, 1].
        tokens: of a micro-batch; None takes what data.batch allows.
    """
    job = _job(config)
    model = meta_model(job.source, job.model.get("step_format") if job.kind == "PRM" else None, job.kind == "PRM")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    shape, size = _shape(model), _SIZES[job.source.dtype]
    notes = ["trainer.devices is not a number; one device is taken"] if job.trainer.get("devices") == "auto" else []
    micro = tokens or _micro_tokens(job.data, notes)
    states = state_bytes(trained, total - trained, size, job.division)
    memory = {"weights": states.weights, "gradients": states.gradients, "optimizer": states.optimizer}
    memory |= _models_beside(job, total, trained, notes)
    active = 2 if job.mixed else size
    memory["activations"] = activation_bytes(shape, micro, active, job.source.gradient_checkpointing)
    memory["logits"] = 0.0 if job.kind == "PRM" else logit_bytes(shape, micro)
    on_cpu = job.trainer.get("accelerator") == "cpu"
    device = Device(0.0, _measured_peak()) if on_cpu else DEVICES[gpu]
    a_step = micro * int(job.trainer.get("accumulate_grad_batches") or 1)
    seconds = step_seconds(total, a_step, device.peak * utilisation, job.source.lora is not None)
    steps = int(job.trainer.get("max_steps") or -1)
    return {
        "weights": {"trained": trained, "frozen": total - trained},
        "division": _described(job.division),
        "memory": memory,
        "sum": sum(memory.values()),
        "host": states.host + size * total,
        "device": {"name": "cpu" if on_cpu else gpu, "memory": None if on_cpu else device.memory},
        "tokens": micro,
        "step": {
            "tokens": a_step * job.division.processes,
            "seconds": seconds,
            "steps": steps if steps > 0 else None,
            "total_seconds": seconds * steps if steps > 0 else None,
        },
        "notes": notes,
    }


def meta_model(source: ModelSource, step_format: Any, prm: bool) -> nn.Module:
    """The model that a source describes, adapters included, without memory for its weights.

    Args:
        source: of the model.
        step_format: of a PRM, as in its config; None reads that of the source's folder.
        prm: it is a PRM, whose head the step format decides.
    """
    if source.path is None:
        config, folder = make_config(source, load_tokenizer(source)), None
    else:
        folder = resolve_source(source, weights=False)
        try:
            config = read_config(folder)
        except DataError as error:
            raise DataError(f"{error}. Name a model that is there with --model.source.path.") from None
    head = "label_tokens"
    if prm:
        spec = StepFormat.load(folder) if step_format is None and folder is not None else None
        head = (spec or get_step_format(step_format or "plain")).prm.head
    if head != "label_tokens":
        config.num_labels = 2 if head == "token_head" else 1
    auto = AutoModelForCausalLM if head == "label_tokens" else AutoModelForTokenClassification
    with torch.device("meta"):
        model = from_config(auto, config, source)
        made: nn.Module = prepare_training(model, source, None if head == "label_tokens" else model.score)
    return made


def _job(config: Mapping[str, Any]) -> _Job:
    model, data = config["model"], config.get("data") or {}
    kind = str(model["class_path"]).rpartition(".")[2]
    values, trainer = model.get("init_args") or {}, config.get("trainer") or {}
    if not isinstance(values.get("source"), Mapping):
        raise ConfigError("model.source", values.get("source"), "where the model comes from: path or config")
    source = dict(values["source"])
    lora = source.pop("lora", None)
    known = {name: value for name, value in source.items() if name in ModelSource.__dataclass_fields__}
    made = ModelSource(**known, lora=None if lora is None else LoraSpec(**lora))
    return _Job(kind, values, data.get("init_args") or {}, trainer, made, _division(trainer))


def _division(trainer: Mapping[str, Any]) -> Division:
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes") or 1)
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 1
    mixed = str(trainer.get("precision", "")) in ("bf16-mixed", "16-mixed")
    strategy = trainer.get("strategy")
    if not isinstance(strategy, Mapping) or not str(strategy.get("class_path")).endswith("ZeroStrategy"):
        return Division(0, count * nodes, mixed)
    zero = strategy.get("init_args") or {}
    return Division(
        int(zero.get("stage", 2)),
        count * nodes,
        mixed,
        bool(zero.get("offload_optimizer")),
        bool(zero.get("offload_parameters")),
    )


def _described(division: Division) -> str:
    name = f"ZeRO {division.stage}" if division.stage else "DDP" if division.processes > 1 else "one process"
    return name if division.processes == 1 else f"{name}, {division.processes} processes"


def _shape(model: Any) -> DecoderShape:
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return DecoderShape(config.num_hidden_layers, config.hidden_size, inner, heads * size, config.vocab_size)


def _micro_tokens(data: Mapping[str, Any], notes: list[str]) -> int:
    """Tokens of a micro-batch, at most."""
    batch = data.get("batch") or {}
    if batch.get("max_tokens"):
        return int(batch["max_tokens"])
    length = data.get("max_length") or data.get("max_tokens")
    if length is None:
        length = _USUAL_LENGTH
        notes.append(f"data.max_length is not set; rows are taken to have {length:,} tokens (--tokens sets them)")
    return int(batch.get("rows") or 1) * int(length)


def _models_beside(job: _Job, total: int, trained: int, notes: list[str]) -> dict[str, float]:
    """Models that no stage of ZeRO divides, and a critic of its own."""
    found: dict[str, float] = {}
    size = 2 if job.mixed and job.division.stage else _SIZES[job.source.dtype]
    pulled = float((job.model.get("kl") or {}).get("weight") or 0.0) > 0
    if (job.kind == "DPO" or (job.kind in ("GRPO", "PPO") and pulled)) and job.source.lora is None:
        found["reference"] = float(size * total)
    if job.kind == "PPO" and (job.model.get("critic") or {}).get("kind") == "separate":
        critic = state_bytes(trained, total - trained, _SIZES[job.source.dtype], job.division)
        found["critic"] = critic.weights + critic.gradients + critic.optimizer
    if job.kind in ("GRPO", "PPO") and ((job.data.get("engine") or {}).get("kind") or "hf") == "hf":
        found["engine's copy"] = float(_SIZES[(job.data.get("engine") or {}).get("dtype", "float32")] * total)
    prm = job.data.get("prm")
    if job.kind in ("GRPO", "PPO") and isinstance(prm, Mapping) and prm.get("path"):
        found["PRM"] = float(_SIZES[prm.get("dtype") or "float32"] * _prm_weights(str(prm["path"]), total, notes))
    return found


def _prm_weights(path: str, total: int, notes: list[str]) -> int:
    try:
        model = meta_model(ModelSource(path=path), None, prm=True)
    except DataError:
        notes.append(f"data.prm.path {path} is not there; the PRM is taken to have the policy's size")
        return total
    return sum(p.numel() for p in model.parameters())


def _measured_peak() -> float:
    """Float32 operations a second that a product of matrices reaches on this CPU."""
    side, rounds = 512, 8
    left = torch.ones(side, side)
    left @ left  # the first call sets up
    start = time.perf_counter()
    for _ in range(rounds):
        left @ left
    return 2 * side**3 * rounds / (time.perf_counter() - start)
