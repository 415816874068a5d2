"""Every preset under chat templates that behave like those of real families, against the template itself."""

import logging
from dataclasses import replace

import pytest

from prmkit.errors import ConfigError, StepFormatError
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.chat_frames import _say_folded
from prmkit.formats.presets import STEP_FORMATS, get_step_format
from prmkit.formats.spec import PolicyFormat, StepFormat

QUESTION, STEPS = "What is 1+2? Say it.", ["First, 1+2 is 3.", "So the answer is 3."]
SPECIALS = ["<bos>", "<|end|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<extra_0>", "[INST]"]
ADDED = ("<think>", "</think>")

_TURN = "<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n"
_GEMMA_TURN = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n"
)


def each(turn, content="m.content"):
    return "{% for m in messages %}" + turn.replace("CONTENT", content) + "{% endfor %}"


def opening(text):
    return "{% if add_generation_prompt %}" + text + "{% endif %}"


ASSISTANT = "<|im_start|>assistant\n"
# Template, the token that ends the assistant's turn, and whether it has a place for a system message.
TEMPLATES = {
    "chatml": (each(_TURN) + opening(ASSISTANT), "<|im_end|>", True),
    "strips": (each(_TURN, "m.content.strip()") + opening(ASSISTANT), "<|im_end|>", True),
    "gemma2": (
        "<bos>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + each(_GEMMA_TURN)
        + opening("<start_of_turn>model\n"),
        "<end_of_turn>",
        False,
    ),
    "mistral": (
        "<bos>{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content }}<|end|>{% endif %}"
        "{% endfor %}",
        "<|end|>",
        False,
    ),
    "drops system": (
        "{% for m in messages if m.role != 'system' %}" + _TURN.replace("CONTENT", "m.content") + "{% endfor %}"
        "" + opening(ASSISTANT),
        "<|im_end|>",
        False,
    ),
    "thinks": (
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n{{ m.content.lstrip('\\n') }}<|im_end|>\n{% else %}"
        + _TURN.replace("CONTENT", "m.content")
        + "{% endif %}{% endfor %}"
        + opening(
            ASSISTANT + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
        ),
        "<|im_end|>",
        True,
    ),
    "opens a thought": (each(_TURN) + opening(ASSISTANT + "<think>\n"), "<|im_end|>", True),
}


@pytest.fixture(scope="module", params=TEMPLATES)
def case(request, make_tokenizer):
    template, end, has_system = TEMPLATES[request.param]
    return make_tokenizer(SPECIALS, template, "<bos>", "<|end|>", ADDED), end, has_system


def conversation(system, has_system, *turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    if system is None:
        return messages
    if has_system:
        return [{"role": "system", "content": system}, *messages]
    return [{"role": "user", "content": f"{system}\n\n{turns[0][1]}"}, *messages[1:]]


def ids_of(tokenizer, messages, **settings):
    text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("question", [QUESTION, " \nspaces\n ", "Say </think>, or\n\n\n\n\n+ ки"])
@pytest.mark.parametrize("name", STEP_FORMATS)
def test_prompts_are_what_the_template_gives(case, name, question):
    tokenizer, end, has_system = case
    spec = STEP_FORMATS[name]
    for policy in (spec.policy, replace(spec.policy, chat=True)):
        bound = BoundStepFormat(StepFormat(name, policy, spec.prm), tokenizer)
        content = policy.template.replace("{question}", question)
        if not policy.chat:
            assert list(bound.prompt_ids(question)) == tokenizer.encode(content, add_special_tokens=False)
            continue
        messages = conversation(policy.system, has_system, ("user", content))
        assert list(bound.prompt_ids(question)) == ids_of(tokenizer, messages, add_generation_prompt=True)
        assert bound.solution_ids("a")[-1] == bound.eos_id == tokenizer.convert_tokens_to_ids(end)
        assert bound.end_ids == {bound.eos_id, tokenizer.eos_token_id}


@pytest.mark.parametrize("name", [name for name, spec in STEP_FORMATS.items() if spec.prm.chat != "none"])
def test_prm_inputs_are_what_the_template_gives(case, name):
    tokenizer, _, has_system = case
    prm = STEP_FORMATS[name].prm
    bound = BoundStepFormat(STEP_FORMATS[name], tokenizer)
    if prm.chat == "single":
        turns = [("user", QUESTION), ("assistant", "".join(step + prm.tag for step in STEPS))]
    else:
        contents = [f"{QUESTION} {STEPS[0]}", *STEPS[1:]]
        turns = [turn for content in contents for turn in (("user", content), ("assistant", prm.tag))]
        turns.append(("user", "next"))
    reference = ids_of(tokenizer, conversation(prm.system, has_system, *turns))
    encoded = bound.encode_steps(QUESTION, STEPS)
    assert list(encoded.input_ids) == reference[: len(encoded.input_ids)]
    at = encoded.positions if prm.read == "tag" else [position + 1 for position in encoded.positions]
    assert [encoded.input_ids[position] for position in at] == list(bound.tag_ids) * len(STEPS)


def test_a_folded_system_text_is_said_once(make_tokenizer, caplog):
    tokenizer = make_tokenizer(SPECIALS, TEMPLATES["gemma2"][0], "<bos>", "<|end|>")
    _say_folded.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            BoundStepFormat(STEP_FORMATS["math-psa"], tokenizer).prompt_ids("Q")
    assert caplog.text.count("no place for a system message") == 1


REFUSALS = {
    "refuses all": (
        "{{ raise_exception('No,\n not  this') }}",
        "refuses the messages .*: No, not this. Set step_format",
    ),
    "wrong attribute": ("{{ messages[0].content.no.such }}", "refuses the messages"),
    "syntax": ("{% for %}", "refuses the messages"),
    "shows no content": ("<|im_start|>", "does not carry messages through unchanged"),
    "shows it twice": (each("{{ m.content }}{{ m.content }}"), "does not carry messages through unchanged"),
    "changes it": (each("{{ m.content | upper }}"), "does not carry messages through unchanged"),
}


@pytest.mark.parametrize("name", ["math-psa", "rlhflow", "qwen2.5-math-prm"])
@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_what_a_template_cannot_do_is_one_line(case, name, make_tokenizer):
    template, match = case
    with pytest.raises(StepFormatError, match=match) as caught:
        BoundStepFormat(STEP_FORMATS[name], make_tokenizer(SPECIALS, template, None, "<|end|>"))
    assert "\n" not in str(caught.value)


def test_settings_of_a_template_reach_it_and_the_file(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(SPECIALS, TEMPLATES["thinks"][0], None, "<|end|>", ADDED)
    settings = {"enable_thinking": False}
    spec = get_step_format({"base": "math-psa", "policy": {"chat_template_kwargs": settings}})
    spec.save(tmp_path)
    bound = BoundStepFormat(StepFormat.load(tmp_path), tokenizer)
    messages = conversation(spec.policy.system, True, ("user", QUESTION))
    wanted = ids_of(tokenizer, messages, add_generation_prompt=True, enable_thinking=False)
    assert list(bound.prompt_ids(QUESTION)) == wanted
    assert list(BoundStepFormat(STEP_FORMATS["math-psa"], tokenizer).prompt_ids(QUESTION)) == wanted[: len(wanted) - 4]


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ({"chat": True, "chat_template_kwargs": [1]}, r"chat_template_kwargs: got \[1\]; accepted: a mapping"),
        ({"chat_template_kwargs": {"a": 1}}, "unless step_format.policy.chat is true"),
        ({"chat": True, "chat_template_kwargs": {"tokenize": 1}}, "names of template variables"),
        ({"chat": True, "chat_template_kwargs": {"a b": 1}}, "names of template variables"),
    ],
)
def test_settings_are_checked(policy, match):
    with pytest.raises(ConfigError, match=match):
        get_step_format({"policy": policy})


@pytest.mark.parametrize("value", [{1}, float("nan"), object(), {1: 2}])
def test_settings_are_what_json_holds(value):
    with pytest.raises(ConfigError, match=r"chat_template_kwargs\.a: got .* a value that JSON can hold"):
        PolicyFormat(chat=True, chat_template_kwargs={"a": value})
