"""StepFormat: the one contract on steps, from text to token ids and back.

A format has two sides. `PolicyFormat` says how a question becomes the policy's prompt and how a completion is split
into steps. `PRMFormat` says how a question and steps become the PRM's input, and where and how scores are read. Both
are data: they are stored in every checkpoint (`step_format.json`) and every pair. `StepFormat.bind(tokenizer)` turns
them into token ids once and gives a `BoundStepFormat`, which all rooms use.

Assembly is by token ids: every piece (prologue, question, step, tag) is tokenised on its own and the ids are joined.
Joining strings and tokenising the whole lets a tag merge with its neighbours and moves the positions that scores are
read from. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from prmkit.errors import ConfigError, StepFormatError
from prmkit.io import read_json, write_json
from prmkit.types import Step

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
    """

    template: str = "{question}\n"
    chat: bool = False
    system: str | None = None
    bos: bool = False
    separator: str = "\n"

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ConfigError("step_format.policy.template", self.template, "text that contains {question}")
        if not self.separator:
            raise ConfigError("step_format.policy.separator", self.separator, "a non-empty string")
        if self.system is not None and not self.chat:
            raise ConfigError("step_format.policy.system", self.system, "None, unless step_format.policy.chat is true")


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

    def bind(self, tokenizer: Any) -> BoundStepFormat:
        """The format in a tokenizer's ids. Raises StepFormatError when the tokenizer cannot express it."""
        return BoundStepFormat(self, tokenizer)

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
            known = {f.name for f in fields(kind)}
            for key in value.get(side, {}):
                if key not in known:
                    raise ConfigError(f"step_format.{side}.{key}", value[side][key], ", ".join(sorted(known)))
            value[side] = kind(**value.get(side, {}))
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


@dataclass(frozen=True, slots=True)
class EncodedSteps:
    """A PRM's input.

    Attributes:
        input_ids: [T] token ids.
        positions: [S] index into input_ids at which each step's score is read; strictly increasing.
    """

    input_ids: tuple[int, ...]
    positions: tuple[int, ...]

    def truncate(self, max_tokens: int) -> EncodedSteps:
        """Keep the leading steps whose score lies within max_tokens; ids behind the last kept position are cut."""
        kept = tuple(p for p in self.positions if p < max_tokens)
        return EncodedSteps(self.input_ids[: kept[-1] + 1] if kept else (), kept)


_PIECES_KEPT = 65536
_QUESTION, _ANSWER = "\u2983question\u2984", "\u2983answer\u2984"


class BoundStepFormat:
    """A step format in the ids of one tokenizer: prompts, splitting of completions, and PRM inputs.

    Attributes:
        spec: the format.
        tokenizer: the tokenizer.
        eos_id: end-of-sequence id.
        label_ids: (negative, positive) token ids with head = "label_tokens", else None.
        tag_ids: ids of the tag; () when there is none.
    """

    def __init__(self, spec: StepFormat, tokenizer: Any) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise StepFormatError(f"step format {spec.name!r}: the tokenizer has no end-of-sequence token")
        self.eos_id: int = int(tokenizer.eos_token_id)
        self._ends_step: dict[int, bool] = {}
        # Samples of a problem share most steps, and all of them the question. Whether it begins a sequence, and a text.
        self._known_pieces: dict[tuple[bool, str], tuple[int, ...]] = {(False, ""): ()}
        self._anchor = self._piece_anchor()
        prm = spec.prm
        self.tag_ids = tuple(self._known(prm.tag, "prm.tag")) if prm.tag else ()
        self.label_ids: tuple[int, int] | None = None
        if prm.head == "label_tokens":
            self.label_ids = (
                self._single(prm.negative, "prm.negative"),
                self._single(prm.positive, "prm.positive"),
            )
        self._open, self._step_open, self._step_close, self._next = self._pieces()

    # -- the policy's side ------------------------------------------------------------------------------------------

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """Token ids of the policy's prompt for a question."""
        policy = self.spec.policy
        text = policy.template.replace("{question}", question)
        if policy.chat:
            rendered = self._render(
                [*self._system(policy.system), {"role": "user", "content": text}], add_generation_prompt=True
            )
            return tuple(self.tokenizer.encode(rendered, add_special_tokens=False))
        return (*self._bos(policy.bos), *self.tokenizer.encode(text, add_special_tokens=False))

    def solution_ids(self, solution: str) -> tuple[int, ...]:
        """Token ids of a whole solution as the policy would write it after its prompt, end of sequence included."""
        return (*self.encode_piece(solution), self.eos_id)

    def split_text(self, solution: str) -> tuple[str, ...]:
        """Steps of a solution text: split at the separator, surrounding white space removed, blank steps dropped."""
        parts = (part.strip() for part in solution.split(self.spec.policy.separator))
        return tuple(part for part in parts if part)

    def split_ids(self, token_ids: Sequence[int], logprobs: Sequence[float] = ()) -> tuple[Step, ...]:
        """Steps of generated ids. A step ends with the token that completes the separator; blank steps join the next.

        The steps' token_ids joined give the input again, the end-of-sequence id included (it belongs to the last
        step), unless nothing but blanks was generated, which gives no steps.
        """
        separator = self.spec.policy.separator
        steps: list[Step] = []
        start = 0
        for end, token in enumerate(token_ids, start=1):
            if token == self.eos_id or not self._may_end_step(token):
                continue
            text = self.decode(token_ids[start:end])
            if separator in text and text.replace(separator, "").strip():
                steps.append(self._step(text, token_ids, logprobs, start, end))
                start = end
        if start < len(token_ids):
            text = self.decode(token_ids[start:])
            if text.replace(separator, "").strip():
                steps.append(self._step(text, token_ids, logprobs, start, len(token_ids)))
            elif steps:
                last = steps[-1]
                steps[-1] = replace(
                    last,
                    token_ids=last.token_ids + tuple(token_ids[start:]),
                    logprobs=last.logprobs + tuple(logprobs[start : len(token_ids)]),
                )
        return tuple(steps)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated ids, end-of-sequence ids left out."""
        kept = [token for token in token_ids if token != self.eos_id]
        return str(self.tokenizer.decode(kept, skip_special_tokens=False))

    def _may_end_step(self, token: int) -> bool:
        """Can this token complete a separator? Judged by its own text once; a partial character always may."""
        known = self._ends_step.get(token)
        if known is None:
            text = self.tokenizer.decode([token], skip_special_tokens=False)
            known = self._ends_step[token] = self.spec.policy.separator[-1] in text or "\ufffd" in text
        return known

    def _step(self, text: str, ids: Sequence[int], logprobs: Sequence[float], start: int, end: int) -> Step:
        return Step(
            self.spec.policy.separator.join(self.split_text(text)), tuple(ids[start:end]), tuple(logprobs[start:end])
        )

    # -- the PRM's side ---------------------------------------------------------------------------------------------

    def encode_steps(self, question: str, steps: Sequence[str]) -> EncodedSteps:
        """The PRM's input for a question and steps.

        The ids for the first k steps are a prefix of the ids for all of them, so that a scorer may go on from a
        prefix that it has encoded already.
        """
        prm = self.spec.prm
        ids = list(self._open)
        first = prm.prologue + question + prm.after_question
        positions: list[int] = []
        for number, step in enumerate(steps, start=1):
            text = prm.before_step.replace("{i}", str(number)) + step + prm.after_step
            if number > 1:
                ids += self._next
            else:
                text = prm.before_first + text
                if prm.chat == "turns":
                    text = first + text
                else:
                    ids += self._first_piece(first) if prm.chat == "none" else self.encode_piece(first)
                    ids += self._step_open
            ids += self.encode_piece(text)
            ids += self._step_close
            positions.append(len(ids) - 1 if prm.read != "tag" else len(ids) + len(self.tag_ids) - 1)
            ids += self.tag_ids
        return EncodedSteps(tuple(ids), tuple(positions))

    def encode_piece(self, text: str) -> list[int]:
        """Ids of a text that stands inside a sequence: no special tokens, no space put before it by the tokenizer."""
        return self._remembered(text, first=False)

    def _first_piece(self, text: str) -> list[int]:
        """Ids of a text that begins a sequence: the tokenizer may put its usual space before it."""
        return self._remembered(text, first=True)

    def _remembered(self, text: str, *, first: bool) -> list[int]:
        known = self._known_pieces.get((first, text))
        if known is None:
            if len(self._known_pieces) >= _PIECES_KEPT:
                self._known_pieces.clear()
            known = self._plain(text) if first else self._tokenise_piece(text)
            self._known_pieces[first, text] = known
        return list(known)

    def _tokenise_piece(self, text: str) -> tuple[int, ...]:
        anchor_text, anchor_ids = self._anchor
        ids = self._plain(anchor_text + text)
        if anchor_ids and ids[: len(anchor_ids)] == tuple(anchor_ids):
            return ids[len(anchor_ids) :]
        return self._plain(text)

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    # -- binding ----------------------------------------------------------------------------------------------------

    def _piece_anchor(self) -> tuple[str, list[int]]:
        """SentencePiece-like tokenizers put a space before the first word of a text. Such a text is tokenised behind
        an anchor, whose ids are cut off again. Byte-level tokenizers need none."""
        plain = list(self.tokenizer.encode("a", add_special_tokens=False))
        behind = list(self.tokenizer.encode("\na", add_special_tokens=False))
        if behind[-len(plain) :] == plain:
            return "", []
        return "\n", list(self.tokenizer.encode("\n", add_special_tokens=False))

    def _known(self, text: str, where: str) -> list[int]:
        ids = self.encode_piece(text)
        if not ids or self.tokenizer.unk_token_id in ids:
            raise StepFormatError(
                f"step_format.{where}: the tokenizer does not know {text!r} (ids {ids}). Use a text in its "
                f"vocabulary, or add it as a special token and resize the model's embeddings."
            )
        return ids

    def _single(self, text: str, where: str) -> int:
        ids = self._known(text, where)
        if len(ids) > 1 and text.strip() != text and len(self.encode_piece(text.strip())) == 1:
            raise StepFormatError(
                f"step_format.{where}: {text!r} is {len(ids)} tokens {ids}; this tokenizer has {text.strip()!r} as one"
            )
        if len(ids) != 1:
            raise StepFormatError(f"step_format.{where}: {text!r} must be a single token, got ids {ids}")
        return ids[0]

    def _bos(self, wanted: bool) -> list[int]:
        if not wanted:
            return []
        if self.tokenizer.bos_token_id is None:
            raise StepFormatError(f"step format {self.spec.name!r} wants a beginning-of-sequence id; there is none")
        return [int(self.tokenizer.bos_token_id)]

    @staticmethod
    def _system(system: str | None) -> list[dict[str, str]]:
        return [] if system is None else [{"role": "system", "content": system}]

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        if not self.tokenizer.chat_template:
            raise StepFormatError(f"step format {self.spec.name!r} needs a chat template; the tokenizer has none")
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(rendered)

    def _pieces(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Fixed ids: before the first question, between question and first step, between step and tag, and between
        tag and next step."""
        prm = self.spec.prm
        if prm.chat == "none":
            after = self.encode_piece(prm.after_tag)
            return self._bos(prm.bos), [], [], after
        user, assistant = {"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}
        turns = self._render([*self._system(prm.system), user, assistant, user], add_generation_prompt=False)
        try:
            opening, rest = turns.split(_QUESTION, 1)
            to_assistant, rest = rest.split(_ANSWER, 1)
            to_user, _ = rest.split(_QUESTION, 1)
        except ValueError:
            raise StepFormatError(
                f"step format {self.spec.name!r}: the chat template does not carry messages through unchanged"
            ) from None
        opening_ids = list(self.tokenizer.encode(opening, add_special_tokens=False))
        if prm.chat == "single":
            return opening_ids, self.encode_piece(to_assistant), [], self.encode_piece(prm.after_tag)
        return opening_ids, [], self.encode_piece(to_assistant), self.encode_piece(to_user)


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
    """A step format from a preset's name, a JSON file or model folder, or a mapping of fields.

    A mapping may name a preset with `base` and override fields of its sides.
    """
    if isinstance(source, StepFormat):
        return source
    if isinstance(source, Mapping):
        value = json.loads(json.dumps(dict(source)))
        base = value.pop("base", None)
        if base is None:
            return StepFormat.from_dict(value)
        merged = get_step_format(base).to_dict()
        for side in ("policy", "prm"):
            merged[side].update(value.pop(side, {}))
        return StepFormat.from_dict({**merged, **value})
    if source in STEP_FORMATS:
        return STEP_FORMATS[source]
    path = Path(source)
    if path.is_dir():
        return StepFormat.load(path)
    if path.is_file():
        return StepFormat.from_dict(read_json(path))
    raise ConfigError("step_format", source, f"a preset ({', '.join(STEP_FORMATS)}), a JSON file or a model folder")
