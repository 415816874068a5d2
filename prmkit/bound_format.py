"""A step format in the ids of one tokenizer: prompts, splitting of completions into steps, and PRM inputs.

Assembly is by token ids: every piece (prologue, question, step, tag) is tokenised on its own and the ids are joined.
Joining strings and tokenising the whole lets a tag merge with its neighbours and moves the positions that scores are
read from. Control tokens come from the format and its chat template, never from questions or steps
(`prmkit.text_ids`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prmkit.chat_frames import ChatFrame, ChatTemplate
from prmkit.errors import StepFormatError
from prmkit.text_ids import Parts, TextEncoder, added_tokens, strip_parts
from prmkit.types import Step

if TYPE_CHECKING:
    from prmkit.steps import StepFormat

__all__ = ["BoundStepFormat", "EncodedSteps"]


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


class BoundStepFormat:
    """A step format in the ids of one tokenizer.

    Args:
        spec: the format.
        tokenizer: the tokenizer.
        ends: further ids at which the model's samples end, as `prmkit.ends.model_end_ids` reads them.

    Attributes:
        spec: the format.
        tokenizer: the tokenizer.
        eos_id: the id that ends a solution where one is written here: the chat template's own end of the assistant's
            turn with `spec.policy.chat`, otherwise the tokenizer's end of sequence.
        end_ids: all ids that end a sample: `eos_id`, the tokenizer's end of sequence and `ends`.
        label_ids: (negative, positive) token ids with head = "label_tokens", else None.
        tag_ids: ids of the tag; () when there is none.

    Raises:
        StepFormatError: the tokenizer cannot express the format.
    """

    def __init__(self, spec: StepFormat, tokenizer: Any, ends: Iterable[int] = ()) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self._ends_step: dict[int, bool] = {}
        self._own = TextEncoder(tokenizer, ())  # the format's own texts may be anything
        self._prompt_frame, self._steps_frame, delimiters, turn_end = self._frames()
        eos = tokenizer.eos_token_id
        found = [int(token) for token in (turn_end, eos, *ends) if token is not None]
        if not found:
            raise StepFormatError(f"step format {spec.name!r}: the tokenizer has no end-of-sequence token")
        self.eos_id: int = found[0]
        self.end_ids = frozenset(found)
        prm = spec.prm
        self.tag_ids = tuple(self._known(prm.tag, "prm.tag")) if prm.tag else ()
        self.label_ids: tuple[int, int] | None = None
        if prm.head == "label_tokens":
            self.label_ids = (
                self._single(prm.negative, "prm.negative"),
                self._single(prm.positive, "prm.positive"),
            )
        controls = self._controls({*delimiters, *self.end_ids, *self.tag_ids, *(self.label_ids or ())})
        # A policy may end its steps with a token of its own.
        self._written = TextEncoder(tokenizer, controls - set(self._own.encode((spec.policy.separator,))))
        self._judged = TextEncoder(tokenizer, controls)
        self._open, self._step_open, self._step_close, self._next = self._pieces()

    # -- the policy's side ------------------------------------------------------------------------------------------

    def prompt_ids(self, question: str) -> tuple[int, ...]:
        """Token ids of the policy's prompt for a question."""
        policy = self.spec.policy
        fixed = policy.template.split("{question}")
        parts: Parts = (fixed[0], *(part for after in fixed[1:] for part in (question, after)))
        if self._prompt_frame is None:
            return (*self._bos(policy.bos), *self._written.encode(parts, first=True))
        (before, after), (strips,) = self._prompt_frame.texts, self._prompt_frame.strips
        content = strip_parts(parts, *strips)
        return tuple(self._written.encode((before + content[0], *content[1:-1], content[-1] + after), first=True))

    def solution_ids(self, solution: str) -> tuple[int, ...]:
        """Token ids of a whole solution as the policy would write it after its prompt, end of sequence included."""
        return (*self.encode_piece(solution), self.eos_id)

    def encode_piece(self, text: str) -> list[int]:
        """Ids of a text of the policy inside a sequence: no control tokens, no space put before it by the tokenizer."""
        return self._written.encode(("", text, ""))

    def sampled_ids(self, text: str) -> list[int]:
        """Ids of a sample that came as text only. The text of a special token is taken for that token, which the policy
        may sample; ends of sequence are left out."""
        return [token for token in self._own.encode((text,)) if token not in self.end_ids]

    def keeps_apart(self, token_ids: Sequence[int]) -> bool:
        """True if the text of ids, tokenised as a server does it, gives no control tokens beyond those in the ids."""
        text = str(self.tokenizer.decode(list(token_ids), skip_special_tokens=False))
        again = self.tokenizer.encode(text, add_special_tokens=False)
        return self._judged.controls_in(again) == self._judged.controls_in(token_ids)

    def split_text(self, solution: str) -> tuple[str, ...]:
        """Steps of a solution text: split at the separator, surrounding white space removed, blank steps dropped."""
        parts = (part.strip() for part in solution.split(self.spec.policy.separator))
        return tuple(part for part in parts if part)

    def split_ids(self, token_ids: Sequence[int], logprobs: Sequence[float] = ()) -> tuple[Step, ...]:
        """Steps of generated ids. A step ends with the token that completes the separator; blank steps join the next.

        The steps' token_ids joined give the input again, the id that ended the sample included (it belongs to the last
        step), unless nothing but blanks was generated, which gives no steps.
        """
        separator = self.spec.policy.separator
        steps: list[Step] = []
        start = 0
        for end, token in enumerate(token_ids, start=1):
            if token in self.end_ids or not self._may_end_step(token):
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
        """Text of generated ids, ids that end a sample left out."""
        kept = [token for token in token_ids if token not in self.end_ids]
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
        positions: list[int] = []
        for number, step in enumerate(steps, start=1):
            parts: Parts = (prm.before_step.replace("{i}", str(number)), step, prm.after_step)
            if number == 1:
                opening, parts = self._first_step(question, (prm.before_first + parts[0], *parts[1:]))
                ids += opening
            else:
                ids += self._next
                parts = self._stripped(parts, 2) if prm.chat == "turns" else parts
            ids += self._judged.encode(parts)
            ids += self._step_close
            positions.append(len(ids) - 1 if prm.read != "tag" else len(ids) + len(self.tag_ids) - 1)
            ids += self.tag_ids
        return EncodedSteps(tuple(ids), tuple(positions))

    def _first_step(self, question: str, step: Parts) -> tuple[list[int], Parts]:
        """Ids of the question where it has a piece of its own, and the piece that holds the first step."""
        prm = self.spec.prm
        opening: Parts = (prm.prologue, question, prm.after_question)
        if prm.chat == "turns":
            return [], self._stripped((*opening[:2], opening[2] + step[0], *step[1:]), 0)
        if prm.chat == "none":
            return self._judged.encode(opening, first=True), step
        return [*self._judged.encode(self._stripped(opening, 0)), *self._step_open], self._stripped(step, 1)

    def _stripped(self, parts: Parts, place: int) -> Parts:
        """A content of the PRM's conversation as the chat template would show it; of an answer, only its beginning."""
        assert self._steps_frame is not None
        left, right = self._steps_frame.strips[place]
        return strip_parts(parts, left, "" if place == 1 else right)

    # -- binding ----------------------------------------------------------------------------------------------------

    def _frames(self) -> tuple[ChatFrame | None, ChatFrame | None, set[int], int | None]:
        """Frames of the policy's prompt and of the PRM's input, the tokens that mark turns in them, and the one that
        ends the policy's turn."""
        policy, prm = self.spec.policy, self.spec.prm
        prompt = steps = None
        marks: set[int] = set()
        turn_end: int | None = None
        if policy.chat:
            template = ChatTemplate(self.tokenizer, self.spec.name, policy.chat_template_kwargs)
            prompt = template.frame(policy.system, ["user"], add_generation_prompt=True)
            turns = template.frame(policy.system, ["user", "assistant"])
            turn_end = next(iter(self._marks(turns.texts[-1])), None)
            marks.update(self._marks(template.frame(policy.system, ["user"]).texts[-1]), self._marks(prompt.texts[0]))
        if prm.chat != "none":
            template = ChatTemplate(self.tokenizer, self.spec.name)
            roles = ["user", "assistant"] if prm.chat == "single" else ["user", "assistant", "user"]
            steps = template.frame(prm.system, roles)
            marks.update(*map(self._marks, template.frame(prm.system, ["user"]).texts))
        return prompt, steps, marks, turn_end

    def _marks(self, text: str) -> list[int]:
        """Ids of the tokens in a text of the format that the tokenizer matches as a whole."""
        known = added_tokens(self.tokenizer)
        return [token for token in self._own.encode((text,), first=True) if token in known]

    def _controls(self, used: set[int]) -> frozenset[int]:
        """Ids that questions and steps must not give: special tokens, and the added tokens that the format uses.

        Other added tokens are what models write (`<think>`); the unknown token is what ordinary text becomes. A token
        that the format does not use, and whose text the vocabulary cannot spell otherwise (`<pad>` among single digits
        and signs), stays what it is: unknown tokens in its place would hide what the policy wrote.
        """
        known, unknown = added_tokens(self.tokenizer), self.tokenizer.unk_token_id
        if self.spec.policy.bos or self.spec.prm.bos:
            used = used | {self.tokenizer.bos_token_id}
        special = {token for token, added in known.items() if getattr(added, "special", False)} - {unknown}
        unspellable = {
            token
            for token in special - used
            if unknown in TextEncoder(self.tokenizer, {token}).encode(("", str(known[token]), ""))
        }
        return frozenset((special - unspellable) | (used & set(known)))

    def _known(self, text: str, where: str) -> list[int]:
        ids = self._own.encode((text,))
        if not ids or self.tokenizer.unk_token_id in ids:
            raise StepFormatError(
                f"step_format.{where}: the tokenizer does not know {text!r} (ids {ids}). Use a text in its "
                f"vocabulary, or add it as a special token and resize the model's embeddings."
            )
        return ids

    def _single(self, text: str, where: str) -> int:
        ids = self._known(text, where)
        if len(ids) > 1 and text.strip() != text and len(self._own.encode((text.strip(),))) == 1:
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

    def _pieces(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Fixed ids: before the first question, between question and first step, between step and tag, and between
        tag and next step."""
        prm = self.spec.prm
        after = self._own.encode((prm.after_tag,))
        if self._steps_frame is None:
            return self._bos(prm.bos), [], [], after
        texts = self._steps_frame.texts
        opening, to_assistant = self._own.encode((texts[0],), first=True), self._own.encode((texts[1],))
        if prm.chat == "single":
            return opening, to_assistant, [], after
        return opening, [], to_assistant, self._own.encode((texts[2],))
