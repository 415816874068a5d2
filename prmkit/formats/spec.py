"""StepFormat: the one contract on steps, from text to token ids and back.

A format has two sides. `PolicyFormat` says how a question becomes the policy's prompt and how a completion is split
into steps. `PRMFormat` says how a question and steps become the PRM's input, and where and how scores are read. Both
are data: they are stored in every checkpoint (`step_format.json`) and every pair. `BoundStepFormat(spec, tokenizer)`
turns them into token ids once; all rooms use that. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from prmkit.errors import ConfigError, StepFormatError
from prmkit.io import read_json, write_json
from prmkit.plugins import HEADS, HeadName

__all__ = [
    "STEP_FORMAT_FILE",
    "PRMFormat",
    "PolicyFormat",
    "StepFormat",
    "Tokenizer",
]

STEP_FORMAT_FILE = "step_format.json"
SCHEMA = 1

ReadAt = Literal["tag", "before_tag", "step_end"]
Chat = Literal["none", "single", "turns"]
# Arguments of `apply_chat_template` that are not the template's: the format sets them, or they change what it returns.
_TEMPLATE_ARGUMENTS = (
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "messages",
    "padding",
    "return_assistant_tokens_mask",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that formats need."""

    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None
    chat_template: Any

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PolicyFormat:
    """How the policy is prompted and how its completions are split into steps.

    Attributes:
        template: prompt text; `{question}` is put in place of the question. The whole is tokenised at once.
        chat: wrap the filled template as a user message in the tokenizer's own chat template.
        system: system message; None leaves the chat template's default. Only with `chat`.
        bos: begin with the tokenizer's beginning-of-sequence id. Chat templates bring their own.
        separator: text that ends a step. A step's last token is the one that completes it.
        chat_template_kwargs: further variables of the chat template, e.g. {"enable_thinking": false}; values are what
            JSON holds. Only with `chat`.
    """

    template: str = "{question}\n"
    chat: bool = False
    system: str | None = None
    bos: bool = False
    separator: str = "\n"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError("step_format.policy.template", self.template, "text that contains {question}")
        if not self.separator:
            raise ConfigError("step_format.policy.separator", self.separator, "a non-empty string")
        if self.system is not None and not self.chat:
            raise ConfigError("step_format.policy.system", self.system, "None, unless step_format.policy.chat is true")
        self._check_settings()

    def _check_settings(self) -> None:
        path, settings = "step_format.policy.chat_template_kwargs", self.chat_template_kwargs
        if not isinstance(settings, Mapping):
            raise ConfigError(path, settings, "a mapping from names to JSON values")
        if settings and not self.chat:
            raise ConfigError(path, settings, "nothing, unless step_format.policy.chat is true")
        for key, value in settings.items():
            if not isinstance(key, str) or not key.isidentifier() or key in _TEMPLATE_ARGUMENTS:
                raise ConfigError(path, key, f"names of template variables, none of {', '.join(_TEMPLATE_ARGUMENTS)}")
            try:
                same = json.loads(json.dumps(value, allow_nan=False)) == value
            except (TypeError, ValueError):
                same = False
            if not same:
                raise ConfigError(f"{path}.{key}", value, "a value that JSON can hold")


@dataclass(frozen=True, slots=True)
class PRMFormat:
    """How a question and its steps become a PRM's input, and where a step's score is read.

    The input is, piece by piece: [bos] `prologue` question `after_question`, then for step i = 1, 2, ...:
    `before_step` (with `{i}`) step `after_step`, the tag, `after_tag`. The texts `before_step`, step and `after_step`
    are tokenised together (one piece), the tag alone. `before_first` opens the first step's piece: a space that
    tokenizers join to the word behind it. `after_tag` is left out behind the last step. With `chat` the pieces
    between are those of the tokenizer's chat template.

    Attributes:
        prologue: text before the question.
        after_question: text behind the question, in its piece.
        before_first: text before the first step, in the step's piece, in front of `before_step`.
        before_step: text before every step; `{i}` is its number, from 1.
        after_step: text after every step, inside the step's piece.
        tag: text whose token ids are appended after every step; empty only with read = "step_end".
        after_tag: text between the tag and the next step.
        chat: "none"; "single": question as user message, all steps as one assistant message; "turns": question and
            first step as user message, the tag as assistant message, next step as user message, and so on.
        system: system message with `chat`; None leaves the template's default.
        bos: begin with the beginning-of-sequence id (only with chat = "none").
        read: where the hidden state of a step's score is read: at the last token of the "tag", at the token
            "before_tag" (it predicts the tag's first token), or at the last token of the step's piece ("step_end").
        head: "label_tokens": softmax over the LM head's logits of `positive` and `negative`; "token_head": softmax
            over a two-way token-classification head, index 1 is right; "scalar": sigmoid of a one-value head.
        positive, negative: label tokens; each must be a single token. Only with head = "label_tokens".
    """

    prologue: str = ""
    after_question: str = "\n"
    before_first: str = ""
    before_step: str = ""
    after_step: str = ""
    tag: str = "\n"
    after_tag: str = ""
    chat: Chat = "none"
    system: str | None = None
    bos: bool = False
    read: ReadAt = "tag"
    head: HeadName = "label_tokens"
    positive: str = "+"
    negative: str = "-"

    def __post_init__(self) -> None:
        accepted = {
            "chat": ("none", "single", "turns"),
            "read": ("tag", "before_tag", "step_end"),
        }
        for name, choices in accepted.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"step_format.prm.{name}", getattr(self, name), " | ".join(choices))
        HEADS.name_of(self.head, "step_format.prm.head")  # kept as given: module:attribute serves later processes
        if not self.tag and self.read != "step_end":
            raise ConfigError("step_format.prm.tag", self.tag, "a non-empty string, unless read is step_end")
        if self.chat == "turns" and not self.tag:
            raise ConfigError("step_format.prm.tag", self.tag, "a non-empty string with chat = turns")
        if self.head == "label_tokens" and self.positive == self.negative:
            raise ConfigError("step_format.prm.positive", self.positive, "a token other than `negative`")


@dataclass(frozen=True, slots=True)
class StepFormat:
    """Both sides of the contract. See `PolicyFormat` and `PRMFormat`.

    Attributes:
        name: name of the preset it comes from, for people.
        policy: the policy's side.
        prm: the PRM's side.
    """

    name: str = "plain"
    policy: PolicyFormat = field(default_factory=PolicyFormat)
    prm: PRMFormat = field(default_factory=PRMFormat)

    def to_dict(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> StepFormat:
        """Inverse of `to_dict`. Raises StepFormatError for another schema, ConfigError for unknown fields."""
        value = dict(value)
        schema = value.pop("schema", SCHEMA)
        if schema != SCHEMA:
            raise StepFormatError(f"step format has schema {schema!r}; this version of prmkit reads schema {SCHEMA}")
        sides: dict[str, Any] = {"policy": PolicyFormat, "prm": PRMFormat}
        for key in value:
            if key not in ("name", *sides):
                raise ConfigError(f"step_format.{key}", value[key], "the fields name, policy, prm")
        for side, kind in sides.items():
            given = value.get(side, {})
            _check_fields(side, kind, given)
            value[side] = kind(**given)
        return cls(**value)

    def save(self, directory: str | Path) -> None:
        """Write `step_format.json` into a model folder."""
        write_json(Path(directory) / STEP_FORMAT_FILE, self.to_dict())

    @classmethod
    def load(cls, directory: str | Path) -> StepFormat:
        """Read `step_format.json` of a model folder; StepFormatError says how to make one when it is missing."""
        path = Path(directory) / STEP_FORMAT_FILE
        if not path.is_file():
            raise StepFormatError(
                f"{path}: no such file. A model folder names its step format there; give one explicitly "
                f"(the name of a preset, say) or write it with StepFormat.save."
            )
        try:
            return cls.from_dict(read_json(path))
        except StepFormatError as error:
            raise StepFormatError(f"{path}: {error}") from None


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "bool": ((bool,), "true or false"),
    "str | None": ((str, type(None)), "text or null"),
}


def _check_fields(side: str, kind: Any, given: Any) -> None:
    """Refuse what is no mapping of a side's fields, or a value of another type; choices are checked by the side."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"step_format.{side}", given, "a mapping of fields")
    known = {f.name: _TYPES.get(str(f.type)) for f in fields(kind)}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"step_format.{side}.{key}", value, ", ".join(sorted(known)))
        types, words = known[key] or ((object,), "")
        if not isinstance(value, types):
            raise ConfigError(f"step_format.{side}.{key}", value, words)
