"""What a server says of itself: which models it serves, and what prmkit's own server adds to that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from prmkit.engines.remote.client import HttpClient
from prmkit.errors import ConfigError
from prmkit.json_objects import shown

__all__ = ["Served", "ask_served"]


@dataclass(frozen=True, slots=True)
class Served:
    """A model on a server.

    Attributes:
        model: its name there.
        context: tokens of the longest sequence; None when the server does not tell.
        weights: identity of the weights; only prmkit's own server tells.
        weight_version: version of the weights; only prmkit's own server tells.
        read_positions: `/pooling` gives only the positions asked for; only prmkit's own server does.
    """

    model: str
    context: int | None = None
    weights: str | None = None
    weight_version: int | None = None
    read_positions: bool = False

    def identity(self) -> dict[str, Any]:
        """What decides its samples, for settings that a resumed run must share."""
        return {"model": self.model, "weights": self.weights}

    def narrowed_to(self, other: Served) -> Served:
        """The same with the smaller context of the two."""
        contexts = [served.context for served in (self, other) if served.context is not None]
        return replace(self, context=min(contexts, default=None))


async def ask_served(client: HttpClient, url: str) -> Served:
    """The model that a config means, from `/v1/models` of one endpoint.

    Raises:
        ConfigError: the endpoint does not serve it, or several where none is named, or is no such server.
        Unanswered, ServerError: see `client.Probe`.
    """
    listed = (await client.ask(url, "/v1/models")).get("data")
    if not isinstance(listed, list) or not all(
        isinstance(card, Mapping) and isinstance(card.get("id"), str) for card in listed
    ):
        raise ConfigError("http.endpoints", url, "a server whose /v1/models lists its models")
    cards = {card["id"]: card for card in listed}
    wanted = client.config.model
    if wanted is None and len(cards) == 1:
        wanted = next(iter(cards))
    if wanted is None or wanted not in cards:
        raise ConfigError("http.model", wanted, f"one of {' | '.join(cards) or 'no'} model(s) that {url} serves")
    card = cards[wanted]
    for name in ("max_model_len", "weight_version"):
        if not (card.get(name) is None or type(card[name]) is int):
            raise ConfigError("http.endpoints", url, f"a server whose {name} is an integer, got {shown(card[name])}")
    context, version = card.get("max_model_len"), card.get("weight_version")
    return Served(
        wanted,
        context,
        card.get("weights"),
        version,
        bool(card.get("read_positions", False)),
    )
