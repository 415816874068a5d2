"""Settings of scorers. Plain records; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prmkit.engines.config import HttpConfig
from prmkit.errors import ConfigError

__all__ = ["HttpScorerConfig", "ScorerConfig"]


@dataclass(frozen=True)
class HttpScorerConfig(HttpConfig):
    """How a PRM's servers are reached and read.

    Attributes:
        right_column: which of a token's label probabilities is that of a right step: 1 for token heads and for label
            tokens given as [negative, positive], 0 the other way round. Not read of servers with one score a token.
    """

    right_column: int = 1

    def __post_init__(self) -> None:
        HttpConfig.__post_init__(self)
        if self.right_column not in (0, 1):
            raise ConfigError("http.right_column", self.right_column, "0 or 1")


@dataclass(frozen=True)
class ScorerConfig:
    """Where and how the PRM computes.

    Attributes:
        kind: hf computes in this process, http asks servers (see http).
        max_batch_tokens: of hf: tokens computed together at most; at least 1.
        cache_tokens: of hf: tokens of prefixes whose keys and values are kept; 0 keeps none.
        dtype: of hf: type of the weights.
        http: how the servers are reached.
    """

    kind: Literal["hf", "http"] = "hf"
    max_batch_tokens: int = 8192
    cache_tokens: int = 65536
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    http: HttpScorerConfig = field(default_factory=HttpScorerConfig)

    def __post_init__(self) -> None:
        if self.kind == "http" and not self.http.endpoints:
            raise ConfigError(
                "scorer.http.endpoints", [], "at least one server's address", "Give --prm_endpoint http://HOST:PORT."
            )

    @property
    def weights(self) -> bool:
        """True if the scorer computes with the weights of the PRM's folder."""
        return self.kind == "hf"
