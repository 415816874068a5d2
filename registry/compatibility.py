"""May this PRM score that policy? Answered from facts on disk, before a model is loaded, with reasons as text.

Steps pass from policy to PRM as text, so what must agree is what a step is (the separator); that the PRM's head and
tokenizer fit its own weights; and that the PRM can write the policy's text in its tokens. Tokenizers may differ
when the PRM's can write any text.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prmkit.formats.spec import StepFormat
from prmkit.plugins import HEADS
from registry.errors import IncompatibleError
from registry.facts import ModelFacts, read_facts

__all__ = ["KIND_PROBLEMS", "Compatibility", "check_facts", "check_folders"]

KIND_PROBLEMS = ("the policy's folder says that it is a PRM", "the PRM's folder says that it is a policy")
_CAUSAL = "ForCausalLM"
_OWN_HEADS = ("ForTokenClassification", "ForSequenceClassification", "ForProcessRewardModel", "ForPrmModel")


@dataclass(frozen=True, slots=True)
class Compatibility:
    """The verdict.

    Attributes:
        problems: why the PRM may not score the policy; none means it may.
        notes: what to know when it does.
    """

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def require(self, what: str) -> None:
        """IncompatibleError, which begins with `what`, when there are problems."""
        if self.problems:
            raise IncompatibleError(f"{what}: this PRM cannot score this policy: {'; '.join(self.problems)}")


def check_folders(
    policy: Path,
    prm: Path,
    *,
    policy_format: StepFormat | None = None,
    prm_format: StepFormat | None = None,
    tokens: int | None = None,
) -> Compatibility:
    """The verdict on two model folders.

    Args:
        policy, prm: the folders.
        policy_format, prm_format: in place of the folders' own.
        tokens: longest question with its solution that is going to be scored; None when unknown.

    Raises:
        DataError: a folder lacks config.json, or a file in it is malformed.
    """
    return check_facts(read_facts(policy, policy_format), read_facts(prm, prm_format), tokens=tokens)


def check_facts(policy: ModelFacts, prm: ModelFacts, *, tokens: int | None = None) -> Compatibility:
    """The same from facts, e.g. those in a manifest."""
    problems: list[str] = []
    notes: list[str] = []
    for check in (_kinds, _step_formats, _architectures, _tokenizers, _embeddings):
        check(policy, prm, problems, notes)
    _context(policy, prm, tokens, problems, notes)
    return Compatibility(tuple(problems), tuple(notes))


def _kinds(policy: ModelFacts, prm: ModelFacts, problems: list[str], notes: list[str]) -> None:
    del notes
    if policy.kind == "prm":
        problems.append(KIND_PROBLEMS[0])
    if prm.kind == "policy":
        problems.append(KIND_PROBLEMS[1])


def _step_formats(policy: ModelFacts, prm: ModelFacts, problems: list[str], notes: list[str]) -> None:
    missing = [name for name, facts in (("policy", policy), ("PRM", prm)) if facts.step_format is None]
    problems.extend(f"the {name} has no step_format.json, so nothing says what its steps are" for name in missing)
    if policy.step_format is None or prm.step_format is None:
        return
    ours, theirs = StepFormat.from_dict(policy.step_format).policy, StepFormat.from_dict(prm.step_format).policy
    if ours.separator != theirs.separator:
        problems.append(
            f"the policy's steps end with {ours.separator!r}, those the PRM was trained on with {theirs.separator!r}"
        )
    elif ours != theirs:
        notes.append("the PRM was trained on a policy that was prompted differently (step_format.policy)")


def _architectures(policy: ModelFacts, prm: ModelFacts, problems: list[str], notes: list[str]) -> None:
    notes += [
        f"the {name}'s config.json names Python code of its own (auto_map); it is never run"
        for name, facts in (("policy", policy), ("PRM", prm))
        if facts.remote_code
    ]
    if not (policy.architecture or "").endswith(_CAUSAL):
        problems.append(f"the policy is a {policy.architecture}; it must be a causal language model (*{_CAUSAL})")
    if prm.step_format is None:
        return
    head = StepFormat.from_dict(prm.step_format).prm.head
    known = HEADS.find(head, "step_format.prm.head")
    wanted = known.outputs
    if known.make is not None:
        pass  # its weights have names of their own; they are checked when they are loaded
    elif prm.outputs is not None and prm.outputs != wanted:
        problems.append(f"the PRM's weights hold a head of {prm.outputs} outputs, its step format wants {head!r}")
    elif wanted is not None and prm.outputs is None:
        problems.append(f"the PRM's step format wants the head {head!r}, and its weights hold none")
    suffixes = (_CAUSAL,) if head == "label_tokens" else (*_OWN_HEADS, _CAUSAL)
    if not (prm.architecture or "").endswith(suffixes):
        problems.append(f"the PRM is a {prm.architecture}; the head {head!r} needs one of *{', *'.join(suffixes)}")


def _tokenizers(policy: ModelFacts, prm: ModelFacts, problems: list[str], notes: list[str]) -> None:
    if policy.tokenizer is None or prm.tokenizer is None:
        problems.extend(
            f"the {name} has no tokenizer.json"
            for name, facts in (("policy", policy), ("PRM", prm))
            if facts.tokenizer is None
        )
    elif policy.tokenizer.sha256 != prm.tokenizer.sha256:
        if prm.tokenizer.open is False:
            problems.append(
                "the tokenizers differ, and the PRM's has a closed vocabulary: it cannot write all of the policy's text"
            )
        else:
            notes.append("the tokenizers differ: steps pass as text, and rewards cannot be laid on single tokens")


def _embeddings(policy: ModelFacts, prm: ModelFacts, problems: list[str], notes: list[str]) -> None:
    del notes
    for name, facts in (("policy", policy), ("PRM", prm)):
        size = facts.tokenizer.size if facts.tokenizer is not None else None
        if size is not None and facts.vocab_size is not None and size > facts.vocab_size:
            problems.append(f"the {name}'s tokenizer has {size} tokens, its embedding only {facts.vocab_size} rows")


def _context(policy: ModelFacts, prm: ModelFacts, tokens: int | None, problems: list[str], notes: list[str]) -> None:
    for name, facts in (("policy", policy), ("PRM", prm)):
        if tokens is not None and facts.context_length is not None and facts.context_length < tokens:
            problems.append(f"the {name} takes {facts.context_length} tokens, {tokens} are needed")
    if prm.context_length is not None and prm.context_length < (policy.context_length or 0):
        notes.append(
            f"the PRM takes {prm.context_length} tokens, the policy {policy.context_length}: longer solutions cannot "
            f"be scored to their end"
        )
