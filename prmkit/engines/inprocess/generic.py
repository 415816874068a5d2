"""Any transformers decoder over our key/value buffer: slower than the fused one, and right for more architectures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin

from prmkit.engines.inprocess.kv import KVSpec, round_up
from prmkit.errors import ConfigError

__all__ = ["GenericDecoder"]


class _SlotLayer(CacheLayerMixin):
    """One layer of a buffer in the clothes of a transformers cache: writes at given positions, returns all columns."""

    def __init__(self, buffer: Tensor, rows: Tensor, positions: Tensor) -> None:
        super().__init__()
        self._buffer, self._rows, self._positions = buffer, rows, positions

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        new = torch.stack([key_states, value_states]).permute(1, 3, 0, 2, 4).flatten(0, 1)  # [B*Q, 2, K, D]
        self._buffer[:, self._rows, :, self._positions] = new
        return self._buffer[0], self._buffer[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._buffer.shape[3], 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return int(self._buffer.shape[3])


class GenericDecoder:
    """A decoder that calls the module itself; see `Decoder` for the interface.

    The module is used as it is, by reference, in evaluation mode for the duration of a call. On construction a few
    tokens are run through the module and through this decoder: architectures that do not work over a buffer of keys
    and values (recurrent ones, relative positions outside `position_ids`) are refused rather than computed wrongly.

    Args:
        backbone: transformers decoder without its head.
        device: must be the module's own.

    Raises:
        ConfigError: the architecture cannot be decoded this way, or the device is another one.
    """

    columnwise = False

    def __init__(self, backbone: nn.Module, *, device: torch.device | None = None) -> None:
        config: Any = backbone.config.get_text_config()  # type: ignore[operator,union-attr]
        first = next(backbone.parameters())
        if device is not None and device != first.device:
            raise ConfigError(
                "engine.device", str(device), f"the model's own device {first.device} for {type(backbone).__name__}"
            )
        self._backbone = backbone
        try:
            self._vocab_size = int(config.vocab_size)
            self.spec = KVSpec.of(config, first.dtype, first.device)
            window = getattr(config, "sliding_window", None)
            self.context = int(min(config.max_position_embeddings, window or config.max_position_embeddings))
        except AttributeError as error:
            raise self._refusal(str(error)) from error
        self._probe()

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load weights into the module itself, unless they are the module's own already."""
        own = self._backbone.state_dict()
        if any(name not in own or own[name].data_ptr() != tensor.data_ptr() for name, tensor in state.items()):
            self._backbone.load_state_dict(dict(state))

    def forward(self, ids: Tensor, start: Tensor, kv: Tensor, longest: int, want_hidden: bool = True) -> Tensor | None:
        """See `Decoder.forward`."""
        batch, width = ids.shape
        columns = min(kv.shape[4], round_up(longest + width))
        positions = start[:, None] + torch.arange(width, device=ids.device)
        rows = torch.arange(batch, device=ids.device).repeat_interleave(width)
        layers = [_SlotLayer(layer[:, :, :, :columns], rows, positions.flatten()) for layer in kv]
        seen = torch.arange(columns, device=ids.device) <= positions[:, :, None]
        bias = torch.zeros(seen.shape, dtype=self.spec.dtype, device=ids.device).masked_fill_(~seen, -torch.inf)
        training = self._backbone.training
        self._backbone.eval()
        try:
            output = self._backbone(
                input_ids=ids,
                position_ids=positions,
                attention_mask=bias[:, None],
                past_key_values=Cache(layers=list(layers)),
                use_cache=True,
            )
        finally:
            self._backbone.train(training)
        hidden: Tensor = output.last_hidden_state
        return hidden if want_hidden else None

    @torch.no_grad()
    def _probe(self) -> None:
        """Refuse architectures whose result over the buffer, in two pieces, is not their own result."""
        device = self.spec.device
        length = min(12, self.context)
        cut = length // 2 + 1
        ids = (torch.arange(length, device=device) * 7919 % self._vocab_size)[None]
        kv = self.spec.allocate(1, round_up(length))
        training = self._backbone.training
        self._backbone.eval()
        try:
            wanted = self._backbone(input_ids=ids, use_cache=False).last_hidden_state
            zero = torch.zeros(1, dtype=torch.long, device=device)
            pieces = [self.forward(ids[:, :cut], zero, kv, 1), self.forward(ids[:, cut:], zero + cut, kv, cut + 1)]
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise self._refusal(str(error)) from error
        finally:
            self._backbone.train(training)
        got = torch.cat([piece for piece in pieces if piece is not None], dim=1)
        limit = (1e-4 if self.spec.dtype == torch.float32 else 0.05) * float(wanted.abs().max())
        off = float((got - wanted).abs().max())
        if not off <= limit:
            raise self._refusal(f"its hidden states differ from the model's own by {off:.2g}")

    def _refusal(self, why: str) -> ConfigError:
        return ConfigError(
            "engine.model",
            type(self._backbone).__name__,
            "a decoder with full attention and a key/value cache",
            f"It does not decode over such a cache: {why}.",
        )
