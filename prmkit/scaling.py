"""Memory and time of training from the sizes of a model: the formulas of docs/scaling.md as pure functions.

All memory is in bytes for each process, one process a device. States are exact. Activations count what torch keeps for
the backward pass of a decoder with rotary positions and a gated feed-forward part, in one type.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DEVICES", "DecoderShape", "Device", "Division", "States", "activation_bytes", "logit_bytes", "state_bytes",
           "step_seconds"]  # fmt: skip

LOGITS_AT_ONCE = 1 << 25
MASTER = 12  # a float32 copy and two moments
_MOMENTS = 2


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of accelerator.

    Attributes:
        memory: bytes.
        peak: dense bf16 operations a second.
    """

    memory: float
    peak: float


DEVICES = {
    "h100": Device(80e9, 989e12),
    "h200": Device(141e9, 989e12),
    "a100": Device(80e9, 312e12),
    "l40s": Device(48e9, 362e12),
    "rtx4090": Device(24e9, 165e12),
}


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder. `key_value` is heads times head size of keys."""

    layers: int
    hidden: int
    intermediate: int
    key_value: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Division:
    """How training states are divided among processes.

    Attributes:
        stage: of ZeRO; 0 is one process, or DDP.
        processes: in all; at least 1.
        mixed: bf16-mixed precision; ZeRO then holds weights and gradients in bf16.
        offload_optimizer: optimiser states are in the host's memory.
        offload_parameters: weights are in the host's memory, too; with stage 3.
    """

    stage: int = 0
    processes: int = 1
    mixed: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False


@dataclass(frozen=True, slots=True)
class States:
    """Bytes of a process on its device; `host` is what it keeps in the host's memory."""

    weights: float
    gradients: float
    optimizer: float
    host: float = 0.0


def state_bytes(trained: int, frozen: int, size: int, division: Division) -> States:
    """Weights, gradients and the states of AdamW.

    Args:
        trained: number of weights that are trained.
        frozen: number of weights that are not.
        size: bytes of a weight in `model.source.dtype`.
        division: how they are divided.
    """
    if division.stage == 0:
        return States(size * (trained + frozen), size * trained, _MOMENTS * size * trained)
    held, parts = 2 if division.mixed else size, division.processes
    weights = held * (trained + frozen) / (parts if division.stage == 3 else 1)
    gradients = held * trained / (parts if division.stage >= 2 else 1)
    optimizer = MASTER * trained / parts
    host = (optimizer if division.offload_optimizer else 0.0) + (weights if division.offload_parameters else 0.0)
    return States(
        0.0 if division.offload_parameters else weights,
        gradients,
        0.0 if division.offload_optimizer else optimizer,
        host,
    )


def activation_bytes(shape: DecoderShape, tokens: int, size: int, checkpointing: bool) -> float:
    """What is kept for the backward pass of a micro-batch.

    Args:
        shape: of the decoder.
        tokens: of the micro-batch.
        size: bytes of an activation.
        checkpointing: only the inputs of layers are kept, and one layer at work.
    """
    layer = 8 * shape.hidden + 2 * shape.key_value + 4 * shape.intermediate
    kept = shape.layers * shape.hidden + layer if checkpointing else shape.layers * layer
    return float(size * tokens * (kept + 2 * shape.hidden))


def logit_bytes(shape: DecoderShape, tokens: int, at_once: int = LOGITS_AT_ONCE) -> float:
    """Float32 logits of a policy's loss and their gradient, made `at_once` at a time. A PRM makes two a step."""
    return 8.0 * min(tokens * shape.vocabulary, max(at_once, shape.vocabulary))


def step_seconds(weights: int, tokens: int, operations_a_second: float, adapters: bool) -> float:
    """Seconds of compute of an optimiser step on one device.

    Args:
        weights: of the model, all of them.
        tokens: that one device trains in the step.
        operations_a_second: reached by the device: its peak times the utilisation.
        adapters: only adapters are trained: no gradients of the other weights, 4 operations a weight and token for 6.
    """
    return (4 if adapters else 6) * weights * tokens / operations_a_second
