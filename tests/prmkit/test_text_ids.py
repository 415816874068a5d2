"""The text of control tokens, in questions and steps, never becomes a control token; all other text is as before."""

import copy

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prmkit.steps import STEP_FORMATS, PolicyFormat, PRMFormat, StepFormat
from prmkit.tasks import get_task
from prmkit.text_ids import TextEncoder

SPECIALS = {
    "qwen": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"],
    "llama3": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "sentencepiece": ["<s>", "</s>"],
}
PAIRS = [
    *(("qwen", name) for name in STEP_FORMATS),
    *(("llama3", name) for name in STEP_FORMATS if name not in ("qwen2.5-math-prm", "skywork", "math-shepherd")),
    *(("sentencepiece", name) for name in ("math-shepherd", "plain", "skywork")),
]


def texts(family):
    pieces = st.sampled_from(
        [*SPECIALS[family], "<", "|>", "<|im_<|im_end|>end|>", "a", " 1+2=3", "\n", ".", "+", " ки"]
    )
    return st.lists(pieces, max_size=6).map("".join)


def bind(request, family, name):
    tokenizer = request.getfixturevalue(family)
    if family == "qwen":
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.bos_token = "<|endoftext|>"
    return STEP_FORMATS[name].bind(tokenizer)


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_control_tokens_come_from_the_format_alone(request, family, name):
    bound = bind(request, family, name)
    tokenizer = bound.tokenizer
    special = set(tokenizer.convert_tokens_to_ids(SPECIALS[family]))
    if family == "sentencepiece" and name.startswith("plain"):  # its few pieces cannot spell <s>, which it does not use
        special.remove(tokenizer.bos_token_id)

    def specials(ids):
        return [token for token in ids if token in special]

    @settings(max_examples=40, deadline=None)
    @given(texts(family), st.lists(texts(family), min_size=1, max_size=3))
    @example("".join(SPECIALS[family]), ["".join(SPECIALS[family])] * 2)
    def check(question, steps):
        honest, encoded = bound.encode_steps("q", ["s"] * len(steps)), bound.encode_steps(question, steps)
        assert specials(encoded.input_ids) == specials(honest.input_ids)
        assert len(encoded.positions) == len(steps)
        if bound.spec.prm.read == "tag":
            assert [encoded.input_ids[p] for p in encoded.positions] == [bound.tag_ids[-1]] * len(steps)
        assert specials(bound.prompt_ids(question)) == specials(bound.prompt_ids("q"))
        for step in steps:
            assert specials(bound.solution_ids(step)) == [bound.eos_id]
            if family != "sentencepiece":  # whose small vocabulary does not have all characters
                assert tokenizer.decode(bound.encode_piece(step)) == step

    check()


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_other_text_is_as_the_tokenizer_has_it(request, family, name):
    bound = bind(request, family, name)
    for text in ("What is 1+2?", "a < b |> c\n\n\n", "<|im_en d|>", "Step 1: - +", "<think> x", ""):
        plain = bound.tokenizer.encode("\n" + text, add_special_tokens=False)
        assert bound.encode_piece(text) == plain[len(bound.tokenizer.encode("\n", add_special_tokens=False)) :] or (
            bound.encode_piece(text) == bound.tokenizer.encode(text, add_special_tokens=False)
        )


def test_a_token_without_use_or_other_spelling_stays_what_a_policy_wrote():
    """The built-in tokenizer knows single characters: `<pad>` in a sample is no text that it could spell."""
    task = get_task("accumulator")
    bound = task.step_format.bind(task.tokenizer())
    pad, eos, unknown = (bound.tokenizer.convert_tokens_to_ids(name) for name in ("<pad>", "<eos>", "<unk>"))
    assert bound.encode_piece("f+5=<pad>") == [*bound.encode_piece("f+5="), pad]
    assert eos not in bound.encode_piece("f+5=<eos>")
    assert unknown in bound.encode_piece("f+5=<eos>")


def test_tokens_that_are_added_but_not_special_are_what_models_write(make_tokenizer):
    tokenizer = make_tokenizer(["<eos>"], None, None, "<eos>", ("<think>", "<tag>", "<step>"))
    think, tag, step = tokenizer.convert_tokens_to_ids(["<think>", "<tag>", "<step>"])
    bound = StepFormat("t", PolicyFormat(separator="<step>"), PRMFormat(tag="<tag>")).bind(tokenizer)
    assert {think, step} <= set(bound.solution_ids("<think>a<step>b<tag>"))
    assert tag not in bound.solution_ids("<think>a<step>b<tag>")
    ids = bound.encode_steps("<tag>", ["<think>", "<tag><step>"]).input_ids
    assert (ids.count(tag), ids.count(think)) == (2, 1)


def test_a_format_may_write_control_tokens_itself(make_tokenizer):
    tokenizer = make_tokenizer(["<eos>", "<user>", "<end>"], None, None, "<eos>")
    bound = StepFormat("t", PolicyFormat("<user>{question}<end>"), PRMFormat("<user>", "<end>")).bind(tokenizer)
    wanted = tokenizer.convert_tokens_to_ids(["<user>", "<end>"])
    for question in ("q", "<end><user>", "<user>", "<", "<us"):
        for ids in (bound.prompt_ids(question), bound.encode_steps(question, ["<end>"]).input_ids):
            assert [token for token in ids if token >= wanted[0] - 1] == wanted
            assert ids[0] == wanted[0]


def test_tokens_that_match_other_text_than_their_own():
    """A normaliser that makes `<EOS>` of other letters, a token that takes in spaces, and one of a single letter."""
    words = {character: number for number, character in enumerate("<eos>x y$")}
    core = Tokenizer(models.WordLevel({**words, "?": 50}, unk_token="?"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.add_special_tokens(
        [
            AddedToken("<eos>", normalized=True, special=True),
            AddedToken("$", special=True),
            AddedToken("<x>", lstrip=True),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="?")
    controls = set(tokenizer.convert_tokens_to_ids(["<eos>", "$", "<x>"]))
    for text in ("a<EOS>b", "<eos>", "$", "x$y", "x  <x>", "<<eos>eos>"):
        ids = TextEncoder(tokenizer, controls).encode(("", text, ""))
        assert controls.isdisjoint(ids), text
        assert len(ids) == len(text) - text.count("$"), text
