import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prmkit.engines.stops import StopTable, find_stop
from prmkit.formats.bound import BoundStepFormat
from prmkit.formats.presets import STEP_FORMATS


@pytest.mark.parametrize(
    ("text", "stops", "found"),
    [
        ("abc", ("c",), "c"),
        ("abc", ("x",), None),
        ("abc", (), None),
        ("abcabc", ("ca", "bc"), "bc"),
        ("abc", ("abc", "c"), "abc"),
        ("abc", ("c", "abc"), "c"),
    ],
)
def test_find_stop(text, stops, found):
    assert find_stop(text, stops) == found


def byte_level_format():
    """Bytes, and two merged tokens: "\\n\\n" and "x\\n"."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    newline = "Ċ"
    for merged in (newline * 2, "x" + newline, "<eos>"):
        vocabulary[merged] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline), ("x", newline)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return STEP_FORMATS["plain"], PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def test_only_tokens_that_cannot_complete_a_stop_are_ruled_out():
    spec, tokenizer = byte_level_format()
    bound = BoundStepFormat(spec, tokenizer)
    flags = StopTable(bound, len(tokenizer) + 3).flags(("\n\n", "é"))
    tokens = {tokenizer.decode([n]): n for n in range(len(tokenizer))}
    assert flags[tokens["\n"]]
    assert flags[tokens["\n\n"]]
    assert flags[tokens["x\n"]]
    assert not flags[tokens["x"]]
    assert flags[bound.eos_id]
    assert not any(flags[len(tokenizer) :])
    completing = tokenizer.encode("é", add_special_tokens=False)[-1]  # a lone byte, without a text of its own
    assert flags[completing]


def test_no_stops_flag_nothing():
    spec, tokenizer = byte_level_format()
    bound = BoundStepFormat(spec, tokenizer, ends=(3, len(tokenizer) + 9))
    flags = StopTable(bound, len(tokenizer)).flags(())
    assert [token for token, flag in enumerate(flags) if flag] == sorted({3, bound.eos_id})
