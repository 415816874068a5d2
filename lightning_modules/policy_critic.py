"""The critic of PPO: a head on the policy's trunk, or a model of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from prmkit.errors import ConfigError
from prmkit.losses import on_grid, predicted_positions
from prmkit.models import ModelSource, build_policy, hidden_states

__all__ = ["Critic", "CriticConfig"]


@dataclass(frozen=True)
class CriticConfig:
    """Where values come from.

    Attributes:
        kind: "head": a linear layer on the policy's hidden states, which costs no pass of its own; "separate": a model
            of its own with such a layer.
        source: of the separate model; None is the policy's source.
        lr: highest learning rate of the critic's own parameters, positive; None is the policy's.
        weight: factor of the critic's loss, above 0. With a head it is also how much the critic shapes the trunk.
        clip: see `value_loss`; None does not clip.
        detach: with a head, the critic's loss leaves the trunk alone.
    """

    kind: Literal["head", "separate"] = "head"
    source: ModelSource | None = None
    lr: float | None = None
    weight: float = 0.5
    clip: float | None = 0.2
    detach: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("head", "separate"):
            raise ConfigError("model.critic.kind", self.kind, "head | separate")
        if self.kind == "head" and self.source is not None:
            raise ConfigError("model.critic.source", self.source, "None with kind = head")
        if self.kind == "separate" and self.detach:
            raise ConfigError("model.critic.detach", True, "false with kind = separate: it shares nothing")
        if self.lr is not None and not self.lr > 0.0:
            raise ConfigError("model.critic.lr", self.lr, "a positive number, or None")
        if not self.weight > 0.0:
            raise ConfigError("model.critic.weight", self.weight, "a number above 0")


class Critic(nn.Module):
    """Value of the state before each token, and before each step. The head begins at 0: so do all values.

    Args:
        config: see CriticConfig.
        source: of the policy.
        policy: the policy, which stays somebody else's submodule.
        tokenizer: its tokenizer.
        of_steps: it says what steps are worth, too.
    """

    def __init__(
        self, config: CriticConfig, source: ModelSource, policy: PreTrainedModel, tokenizer: Any, of_steps: bool = False
    ) -> None:
        super().__init__()
        self._detach = config.detach
        self.trunk: nn.Module | None = None
        sized = policy
        if config.kind == "separate":
            sized = build_policy(config.source or source, tokenizer)
            self.trunk = sized.base_model
        self.head = nn.Linear(sized.config.get_text_config().hidden_size, 2 if of_steps else 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, policy: PreTrainedModel, input_ids: Tensor, mask: Tensor, states: Tensor | None) -> list[Tensor]:
        """Values before the tokens that a mask marks, [B, T] float32 each; 0 elsewhere.

        The first is for tokens; with `of_steps`, the second is for steps: the value of what a step begins at.

        Args:
            policy: the policy, for a head on its trunk.
            input_ids: [B, T], padded on the right.
            mask: [B, T] bool.
            states: [N, H] the policy's hidden states there (`PolicyScores.states`); None has them made.
        """
        if self.trunk is not None or states is None:
            hidden = hidden_states(self.trunk or policy.base_model, input_ids, None)
            states, _ = predicted_positions(hidden, input_ids, mask)
        with torch.autocast(input_ids.device.type, enabled=False):  # float32, whatever type the weights are held in
            states = (states.detach() if self._detach else states).float()
            values = linear(states, self.head.weight.float(), self.head.bias.float())
        return [on_grid(column.float(), mask) for column in values.unbind(1)]
