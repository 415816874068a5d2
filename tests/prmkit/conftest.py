"""A policy whose every probability is known, over characters: for tests of search, annotation and evaluation; and
small tokenizers made like those of known families."""

import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS
from prmkit.grading.exact import ExactGrader
from prmkit.records import Completion, Problem
from prmkit.tasks.vocabulary import character_tokenizer

_CORPUS = [
    "What is 1+2? Say it.",
    "First, 1+2 is 3.",
    "So the answer is 3.",
    "Step 1: x \n\n\n\n\n Step 2: y ки\n",
    " + - ки \n\n +-",
    "system user assistant",
] * 30
_QWEN_SPLIT = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nDefault.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}"
)


def byte_level(
    specials: list[str], template: str, bos: str | None, eos: str, added: tuple[str, ...] = ()
) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes and merges, with special tokens and tokens that are added but not special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet))
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    core.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=eos, bos_token=bos, chat_template=template)


@pytest.fixture(scope="session")
def qwen() -> PreTrainedTokenizerFast:
    return byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"], _CHATML, None, "<|im_end|>")


@pytest.fixture(scope="session")
def llama3() -> PreTrainedTokenizerFast:
    specials = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(specials, _LLAMA3, "<|begin_of_text|>", "<|eot_id|>")


@pytest.fixture(scope="session")
def sentencepiece() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(  # real models keep line ends apart, as byte tokens
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split("\n", "isolated")]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.train_from_iterator(_CORPUS, trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"]))
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def make_tokenizer():
    return byte_level


class TreePolicy:
    """Draws step after step from `next_steps(steps so far) -> {step: probability}`; no next step ends the solution.

    Implements `prmkit.protocols.Engine`. Sample i depends on (prompt, seed, i) only. `requests` keeps all requests.
    """

    def __init__(self, next_steps: Callable[[tuple[str, ...]], dict[str, float]], weight_version: int = 0):
        self.format = BoundStepFormat(
            STEP_FORMATS["plain"], character_tokenizer("abcdefghijklmnopqrstuvwxyz0123456789+-*=?. \n")
        )
        self.weight_version = weight_version
        self.next_steps = next_steps
        self.requests = []

    async def generate(self, request):
        self.requests.append(request)
        text = self.format.decode(request.prompt_ids)
        assert text.endswith("\n"), f"a prefix that does not end with a step: {text!r}"
        prefix = tuple(text[:-1].split("\n")[1:])
        return [self._sample(prefix, request, i) for i in range(request.n)]

    def _sample(self, prefix, request, i):
        rng = random.Random(f"{request.prompt_ids} {request.seed} {i}")
        steps = prefix
        while options := self.next_steps(steps):
            if request.params.temperature == 0:
                choice = max(options, key=options.get)
            else:
                choice = rng.choices(list(options), weights=list(options.values()))[0]
            steps = (*steps, choice)
        text = "".join(step + "\n" for step in steps[len(prefix) :])
        ids = (*self.format.encode_piece(text), self.format.eos_id)
        cut = ids[: request.params.max_tokens]
        finish = "stop" if len(cut) == len(ids) else "length"
        return Completion(cut, (-1.0,) * len(cut), self.format.decode(cut), finish, None, self.weight_version)


@pytest.fixture
def tree_policy():
    return TreePolicy


@pytest.fixture
def last_step_grader():
    """The answer is what follows `=` in the last step."""
    return ExactGrader(lambda text: text.rpartition("=")[2].strip() or None if "=" in text else None)


@pytest.fixture
def coin_problem():
    return Problem("p0", "q", "1")
