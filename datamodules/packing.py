"""Can a model tell packed rows apart?"""

from __future__ import annotations

from typing import Any

from prmkit.errors import ConfigError

__all__ = ["PACKING_ATTENTION", "check_packing"]

PACKING_ATTENTION = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")
"""Attention implementations of transformers that separate rows where position ids begin again."""


def check_packing(model: Any) -> None:
    """Refuse models whose attention would look from one packed row into another.

    Args:
        model: a transformers model.

    Raises:
        ConfigError: its attention implementation is not known to separate packed rows.
    """
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in PACKING_ATTENTION:
        raise ConfigError(
            "data.packing", True, f"false, with attention {attention!r}",
            f"Packing works with {', '.join(PACKING_ATTENTION)}.",
        )  # fmt: skip
