"""The DeepSpeed configuration of a run: what prmkit decides itself, what a user may add, and what contradicts it.

Batch size, accumulation, clipping, precision, optimiser and schedule have one place each in prmkit's own config. A
DeepSpeed section that says them again is refused, whether it agrees or not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prmkit.errors import ConfigError

__all__ = ["check_section", "make_config", "read_section"]

FIELD = "trainer.strategy.config"
_OURS = {
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "managed_gradient_accumulation": "trainer.accumulate_grad_batches",
    "train_batch_size": "data.batch and trainer.accumulate_grad_batches",
    "train_micro_batch_size_per_gpu": "data.batch",
    "gradient_clipping": "trainer.gradient_clip_val",
    "optimizer": "model.optimizer",
    "scheduler": "model.optimizer.schedule",
    "fp16": "trainer.precision",
    "bf16": "trainer.precision",
    "amp": "trainer.precision",
    "torch_autocast": "trainer.precision",
    "zero_force_ds_cpu_optimizer": "model.optimizer.fused, the optimiser that steps on the CPU",
}
_OURS_OF_ZERO = {
    "stage": "trainer.strategy.stage",
    "offload_optimizer": "trainer.strategy.offload_optimizer",
    "offload_param": "trainer.strategy.offload_parameters",
    "cpu_offload": "trainer.strategy.offload_optimizer",
    "cpu_offload_param": "trainer.strategy.offload_parameters",
}


def read_section(config: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """A user's DeepSpeed settings: a mapping, or the path of a JSON file.

    Raises:
        ConfigError: no such file, not JSON, not a mapping, or a setting that prmkit decides.
    """
    if isinstance(config, (str, Path)):
        path = Path(config)
        if not path.is_file():
            raise ConfigError(FIELD, str(config), "a mapping, or the path of an existing JSON file")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(FIELD, str(path), "a JSON file", f"It cannot be read: {error}.") from error
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ConfigError(FIELD, type(config).__name__, "a mapping of DeepSpeed's settings")
    section = dict(config)
    check_section(section)
    return section


def check_section(section: Mapping[str, Any]) -> None:
    """Refuse what contradicts prmkit's own settings (ConfigError)."""
    zero = section.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ConfigError(f"{FIELD}.zero_optimization", zero, "a mapping")
    for where, values, ours in ((FIELD, section, _OURS), (f"{FIELD}.zero_optimization", zero, _OURS_OF_ZERO)):
        for key, home in ours.items():
            if key in values:
                raise ConfigError(f"{where}.{key}", values[key], "not to be set there", f"It is set by {home}.")
    _refuse_auto(FIELD, section)


def _refuse_auto(where: str, value: Any) -> None:
    """`auto` is filled in by other trainers; here nobody would."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _refuse_auto(f"{where}.{key}", inner)
    elif value == "auto":
        raise ConfigError(where, value, "a value, or nothing for DeepSpeed's default")


def make_config(
    section: Mapping[str, Any], stage: int, offload_optimizer: bool, offload_parameters: bool, bucket_elements: int
) -> dict[str, Any]:
    """What is handed to DeepSpeed, without batch, clipping and precision, which the trainer knows later."""
    zero: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "overlap_comm": True,
        "reduce_bucket_size": bucket_elements,
        "allgather_bucket_size": bucket_elements,
    }
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket_elements
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "zero_allow_untested_optimizer": True,
        # The optimiser is always torch's; fused, it steps on the CPU as fast as memory allows.
        "zero_force_ds_cpu_optimizer": False,
        **{key: value for key, value in section.items() if key != "zero_optimization"},
        "zero_optimization": {**zero, **section.get("zero_optimization", {})},
    }
