"""Token positions of every known PRM family, against each family's own way of building its input."""

import copy
import json
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prmkit.errors import ConfigError, StepFormatError
from prmkit.steps import STEP_FORMATS, PolicyFormat, PRMFormat, StepFormat, get_step_format

QUESTION = "What is 1+2? Say it."
STEPS = ["First, 1+2 is 3.", "So the answer is 3."]


def tokens_at(tokenizer: PreTrainedTokenizerFast, encoded) -> list[str]:
    return [tokenizer.convert_ids_to_tokens(encoded.input_ids[p]) for p in encoded.positions]


def test_math_shepherd_reads_at_its_tag(sentencepiece):
    bound = STEP_FORMATS["math-shepherd"].bind(sentencepiece)
    text = f"{QUESTION} Step 1: {STEPS[0]} ки\nStep 2: {STEPS[1]} ки"
    reference = [sentencepiece.bos_token_id, *sentencepiece.encode(text)]
    (tag,) = bound.tag_ids
    encoded = bound.encode_steps(QUESTION, STEPS)
    assert list(encoded.input_ids) == reference
    assert list(encoded.positions) == [i for i, token in enumerate(reference) if token == tag]
    assert sentencepiece.convert_ids_to_tokens(list(bound.label_ids)) == ["▁-", "▁+"]


def test_math_psa_reads_at_its_tag(qwen):
    bound = STEP_FORMATS["math-psa"].bind(qwen)
    encoded = bound.encode_steps(QUESTION, STEPS)
    assert tokens_at(qwen, encoded) == ["ĠĊĊĊĊĊ"] * 2
    assert qwen.decode(encoded.input_ids) == f"{QUESTION} {STEPS[0]} \n\n\n\n\n{STEPS[1]} \n\n\n\n\n"
    assert qwen.convert_ids_to_tokens(list(bound.label_ids)) == ["Ġ-", "Ġ+"]


def test_rlhflow_reads_the_token_that_predicts_the_label(llama3):
    bound = STEP_FORMATS["rlhflow"].bind(llama3)
    turns = [("user", f"{QUESTION} {STEPS[0]}"), ("assistant", "+"), ("user", STEPS[1]), ("assistant", "+")]
    messages = [{"role": role, "content": content} for role, content in turns]
    reference = llama3.encode(llama3.apply_chat_template(messages, tokenize=False), add_special_tokens=False)
    encoded = bound.encode_steps(QUESTION, STEPS)
    assert list(encoded.input_ids) == reference[:-1]  # the closing <|eot_id|> stands behind every score
    assert encoded.positions[-1] == len(reference) - 3  # the family's own code reads logits[:, -3]
    assert [encoded.input_ids[p + 1] for p in encoded.positions] == [bound.label_ids[1]] * 2


def test_skywork_reads_at_the_last_token_of_a_step(qwen):
    qwen = copy.deepcopy(qwen)
    qwen.bos_token = "<|endoftext|>"
    bound = STEP_FORMATS["skywork"].bind(qwen)
    reference, flags = qwen.encode("<|endoftext|>" + QUESTION + "\n"), []
    for step in STEPS:
        reference += qwen.encode(step + "\n")
        flags.append(len(reference) - 1)
    encoded = bound.encode_steps(QUESTION, STEPS)
    assert (list(encoded.input_ids), list(encoded.positions)) == (reference, flags)
    assert bound.label_ids is None


def test_qwen_prm_reads_at_the_extra_token(qwen):
    bound = STEP_FORMATS["qwen2.5-math-prm"].bind(qwen)
    messages = [
        {"role": "system", "content": bound.spec.prm.system},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<extra_0>".join(STEPS) + "<extra_0>"},
    ]
    reference = qwen.encode(qwen.apply_chat_template(messages, tokenize=False))
    encoded = bound.encode_steps(QUESTION, STEPS)
    assert list(encoded.input_ids) == reference[: len(encoded.input_ids)]
    extra = qwen.convert_tokens_to_ids("<extra_0>")
    assert list(encoded.positions) == [i for i, token in enumerate(reference) if token == extra]


@pytest.mark.parametrize("name", ["plain", "math-psa", "rlhflow", "qwen2.5-math-prm"])
def test_ids_of_the_first_steps_are_a_prefix(name, qwen, llama3):
    bound = STEP_FORMATS[name].bind(llama3 if name == "rlhflow" else qwen)
    steps = [*STEPS, "", "last"]
    whole = bound.encode_steps(QUESTION, steps)
    for k in range(len(steps) + 1):
        part = bound.encode_steps(QUESTION, steps[:k])
        assert whole.input_ids[: len(part.input_ids)] == part.input_ids
        assert whole.positions[:k] == part.positions


def test_truncation_keeps_whole_steps_only(qwen):
    encoded = STEP_FORMATS["plain"].bind(qwen).encode_steps(QUESTION, STEPS)
    first, second = encoded.positions
    cut = encoded.truncate(second)
    assert cut.positions == (first,)
    assert len(cut.input_ids) == first + 1
    assert encoded.truncate(second + 1) == encoded
    assert encoded.truncate(first).positions == ()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab .\n\n", max_size=30), st.sampled_from(["\n", "\n\n"]))
def test_split_ids_loses_no_token_and_agrees_with_text(text, separator):
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        ["a. b\n\nab\n\n\nb"] * 9,
        trainers.BpeTrainer(vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["$"]),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="$")
    bound = StepFormat("t", PolicyFormat(separator=separator)).bind(tokenizer)
    ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
    steps = bound.split_ids(ids, [float(i) for i in range(len(ids))])
    if steps:
        assert [token for step in steps for token in step.token_ids] == ids
        assert [value for step in steps for value in step.logprobs] == list(range(len(ids)))
        assert all(step.text.strip() for step in steps)
    else:
        assert not text.strip()
    assert "".join("".join(step.text.split()) for step in steps) == "".join(text.split())


def test_steps_of_text_and_of_ids_agree(qwen):
    bound = STEP_FORMATS["qwen2.5-math-prm"].bind(qwen)
    text = "First.\n\nSecond\n\n\nThird"
    assert [step.text for step in bound.split_ids(bound.solution_ids(text))] == list(bound.split_text(text))


def test_policy_prompt_uses_the_chat_template(qwen):
    bound = STEP_FORMATS["math-psa"].bind(qwen)
    text = qwen.decode(bound.prompt_ids("Q?"))
    assert text.startswith("<|im_start|>system\nPlease reason step by step")
    assert text.endswith("<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n")


def test_formats_survive_json():
    for spec in STEP_FORMATS.values():
        assert StepFormat.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_mapping_overrides_a_preset():
    spec = get_step_format({"base": "plain", "prm": {"read": "step_end", "tag": "", "after_step": "\n"}})
    assert (spec.prm.read, spec.prm.tag, spec.policy) == ("step_end", "", STEP_FORMATS["plain"].policy)


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        ("no-such", ConfigError, r"step_format: got 'no-such'; accepted: a preset \(plain, "),
        ({"prm": {"tagg": "x"}}, ConfigError, r"step_format\.prm\.tagg"),
        ({"prm": {"read": "end"}}, ConfigError, r"step_format\.prm\.read: got 'end'; accepted: tag \| before_tag"),
        ({"prm": {"tag": ""}}, ConfigError, r"step_format\.prm\.tag"),
        ({"policy": {"template": "Q"}}, ConfigError, r"contains \{question\}"),
        ({"schema": 2}, StepFormatError, "schema 2"),
        ({"policy": None}, ConfigError, r"step_format\.policy: got None; accepted: a mapping of fields"),
        ({"base": "plain", "prm": "x"}, ConfigError, r"step_format\.prm: got 'x'; accepted: a mapping of fields"),
        ('{"base": ', ConfigError, r"step_format: got '\{\"base\": '; accepted: JSON text"),
    ],
)
def test_bad_formats_name_the_field(source, error, match):
    with pytest.raises(error, match=match):
        get_step_format(source)


@pytest.mark.parametrize(("side", "kind"), [("policy", PolicyFormat), ("prm", PRMFormat)])
def test_every_field_refuses_a_value_of_another_type(side, kind):
    for field in fields(kind):
        for value in ([1], 1.5):
            with pytest.raises(ConfigError, match=rf"step_format\.{side}\.{field.name}: got "):
                get_step_format({side: {field.name: value}})


def test_a_mapping_may_come_as_text():
    text = '{"base": "math-psa", "policy": {"chat_template_kwargs": {"enable_thinking": false}}}'
    dotted = {"base": "math-psa", "policy": {"chat_template_kwargs.enable_thinking": False}}
    assert get_step_format(text) == get_step_format(json.loads(text)) == get_step_format(dotted)
    assert get_step_format(text).policy.chat_template_kwargs == {"enable_thinking": False}


def test_unknown_tag_and_label_are_refused(sentencepiece, qwen):
    with pytest.raises(StepFormatError, match=r"prm\.tag: the tokenizer does not know '≡'"):
        StepFormat("t", prm=PRMFormat(tag="≡")).bind(sentencepiece)
    with pytest.raises(StepFormatError, match="must be a single token"):
        StepFormat("t", prm=PRMFormat(positive="First answer")).bind(qwen)
    with pytest.raises(StepFormatError, match="needs a chat template"):
        STEP_FORMATS["rlhflow"].bind(sentencepiece)
    with pytest.raises(StepFormatError, match="no such file"):
        StepFormat.load("/nonexistent")
