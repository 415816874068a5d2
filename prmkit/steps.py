"""StepFormat: the one contract on steps, from text to token ids and back.

A format has two sides. `PolicyFormat` says how a question becomes the policy's prompt and how a completion is split
into steps. `PRMFormat` says how a question and steps become the PRM's input, and where and how scores are read. Both
are data: they are stored in every checkpoint (`step_format.json`) and every pair. `StepFormat.bind(tokenizer)` turns
them into token ids once and gives a `BoundStepFormat`, which all rooms use. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol

from prmkit.bound_format import BoundStepFormat, EncodedSteps
from prmkit.errors import ConfigError, StepFormatError
from prmkit.io import read_json, write_json

__all__ = [
    "STEP_FORMATS",
    "STEP_FORMAT_FILE",
    "BoundStepFormat",
    "EncodedSteps",
    "PRMFormat",
    "PolicyFormat",
    "StepFormat",
    "Tokenizer",
    "get_step_format",
]

STEP_FORMAT_FILE = "step_format.json"
SCHEMA = 1

ReadAt = Literal["tag", "before_tag", "step_end"]
HeadKind = Literal["label_tokens", "token_head", "scalar"]
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
    head: HeadKind = "label_tokens"
    positive: str = "+"
    negative: str = "-"

    def __post_init__(self) -> None:
        accepted = {
            "chat": ("none", "single", "turns"),
            "read": ("tag", "before_tag", "step_end"),
            "head": ("label_tokens", "token_head", "scalar"),
        }
        for name, choices in accepted.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"step_format.prm.{name}", getattr(self, name), " | ".join(choices))
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

    def bind(self, tokenizer: Any, ends: Iterable[int] = ()) -> BoundStepFormat:
        """The format in a tokenizer's ids. Raises StepFormatError when the tokenizer cannot express it.

        Args:
            tokenizer: the tokenizer.
            ends: further ids at which the model's samples end; see `prmkit.ends.model_end_ids`.
        """
        return BoundStepFormat(self, tokenizer, ends)

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
                f"(one of: {', '.join(STEP_FORMATS)}) or write it with StepFormat.save."
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


def _nested(value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping in which a key `a.b`, as overrides on a command line leave it, is `b` in the mapping `a`."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        head, dot, rest = str(key).partition(".")
        inner = {rest: item} if dot else item
        if isinstance(inner, Mapping):
            known = found.get(head)
            inner = {**(known if isinstance(known, Mapping) else {}), **_nested(inner)}
        found[head] = inner
    return found


def _presets() -> dict[str, StepFormat]:
    qwen_math_system = "Please reason step by step, and put your final answer within \\boxed{}."
    qwen = PolicyFormat(template="{question}", chat=True, system=qwen_math_system, separator="\n\n")
    plain = PolicyFormat(template="{question}\n", separator="\n")
    formats = [
        StepFormat("plain", plain, PRMFormat()),
        # The label tokens of `plain` are the policy's own words; a head of its own leaves their embeddings alone.
        StepFormat("plain-head", plain, PRMFormat(read="before_tag", head="token_head")),
        StepFormat(
            "math-shepherd",
            plain,
            PRMFormat(
                after_question="",
                before_first=" ",
                before_step="Step {i}: ",
                tag=" ки",
                after_tag="\n",
                bos=True,
                positive=" +",
                negative=" -",
            ),
        ),
        StepFormat(
            "math-psa",
            qwen,
            PRMFormat(after_question="", before_first=" ", tag=" \n\n\n\n\n", positive=" +", negative=" -"),
        ),
        StepFormat(
            "rlhflow", plain, PRMFormat(after_question="", before_first=" ", tag="+", chat="turns", read="before_tag")
        ),
        StepFormat(
            "skywork",
            plain,
            PRMFormat(after_question="\n", after_step="\n", tag="", bos=True, read="step_end", head="scalar"),
        ),
        StepFormat(
            "qwen2.5-math-prm",
            qwen,
            PRMFormat(
                after_question="",
                tag="<extra_0>",
                chat="single",
                system=qwen_math_system,
                head="token_head",
            ),
        ),
    ]
    return {spec.name: spec for spec in formats}


STEP_FORMATS: dict[str, StepFormat] = _presets()


def get_step_format(source: str | Mapping[str, Any] | StepFormat) -> StepFormat:
    """A step format from a preset's name, a JSON file or model folder, or a mapping of fields, as such or as JSON text.

    A mapping may name another format with `base` (a preset, file or folder) and override fields of its sides.
    """
    if isinstance(source, StepFormat):
        return source
    if isinstance(source, Mapping):
        value = _nested(source)
        base = value.pop("base", None)
        if base is None:
            return StepFormat.from_dict(value)
        merged = get_step_format(base).to_dict()
        for side in ("policy", "prm"):
            given = value.pop(side, {})
            if not isinstance(given, Mapping):
                raise ConfigError(f"step_format.{side}", given, "a mapping of fields")
            merged[side].update(given)
        return StepFormat.from_dict({**merged, **value})
    if source.lstrip().startswith("{"):
        try:
            return get_step_format(json.loads(source))
        except json.JSONDecodeError as error:
            raise ConfigError("step_format", source, f"JSON text ({error})") from None
    if source in STEP_FORMATS:
        return STEP_FORMATS[source]
    path = Path(source)
    if path.is_dir():
        return StepFormat.load(path)
    if path.is_file():
        return StepFormat.from_dict(read_json(path))
    raise ConfigError("step_format", source, f"a preset ({', '.join(STEP_FORMATS)}), a JSON file or a model folder")
