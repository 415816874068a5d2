"""Names from outside: what is accepted, and that nothing accepted can leave the store."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prmkit.errors import ConfigError
from registry.names import PairRef, blob_key, check_alias, check_digest, check_pair, check_path, check_paths, parse_ref

HOSTILE = [
    "", ".", "..", "../x", "x/../..", "/etc/passwd", "a/b", "a\\b", "C:\\x", "a b", " a", "a ", "a\n", "a\x00", "a..b",
    ".hidden", "a.", "-a", "~", "$HOME", "Math", "ｍath", "ma​th", "math‮", "é", "con", "nul.json", "lpt1",
    "x" * 64, "@", "a@b", "%2e%2e", "a:b", "a*",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name):
    for check in (check_pair, check_alias):
        with pytest.raises(ConfigError, match="accepted: 1 to 63"):
            check(name)
    with pytest.raises(ConfigError):
        parse_ref(f"{name}@best")
    with pytest.raises(ConfigError):
        parse_ref(f"math@{name}")


@pytest.mark.parametrize("name", ["math", "m", "0", "qwen2.5-math_v1", "x" * 63])
def test_plain_names_are_accepted(name):
    assert check_pair(name) == name


@pytest.mark.parametrize(
    ("alias", "why"), [("latest", "always the highest"), ("7", "a letter in it"), ("1.0", "a letter in it")]
)
def test_aliases_that_would_mean_something_else(alias, why):
    with pytest.raises(ConfigError, match=why):
        check_alias(alias)


@given(st.text(max_size=12))
@example("a/../../x")
def test_an_accepted_name_is_one_plain_ascii_component(name):
    try:
        check_pair(name)
    except ConfigError:
        return
    assert name.isascii()
    assert name == name.lower()
    assert Path("/store", name).resolve() == Path("/store") / name
    assert not set(name) & set("/\\@: \0\n")


@given(st.lists(st.sampled_from(["..", ".", "", "a", "A", "a.b", " ", "con", "é", "x\\y"]), max_size=4))
def test_an_accepted_path_stays_inside(parts):
    path = "/".join(parts)
    try:
        check_path(path)
    except ConfigError:
        return
    assert (Path("/store") / path).resolve().relative_to("/store").as_posix() == path


@pytest.mark.parametrize("path", ["", "/x", "../x", "a/../b", "a//b", "a/", "a b", "a/.hidden", "a\\b", "aux.json", "é",
                                  "a/b/c/d/e/f/g/h/i", "x" * 129, None, 3])  # fmt: skip
def test_hostile_paths_are_refused(path):
    with pytest.raises(ConfigError, match="relative path"):
        check_path(path)


@pytest.mark.parametrize("path", ["config.json", "model-00001-of-00002.safetensors", "1_Pooling/config.json", "a=b+c"])
def test_paths_of_model_folders_are_accepted(path):
    assert check_path(path) == path


def test_paths_that_collide():
    with pytest.raises(ConfigError, match="by more than case"):
        check_paths(["Config.json", "config.json"])
    with pytest.raises(ConfigError, match="inside the file 'a'"):
        check_paths(["a", "A/b"])
    check_paths(["a/b", "a/c", "ab"])


def test_references():
    assert parse_ref("math") == PairRef("math", alias="latest")
    assert parse_ref("math@latest") == PairRef("math", alias="latest")
    assert parse_ref("math@best") == PairRef("math", alias="best")
    assert parse_ref("math@12") == PairRef("math", 12)
    assert [str(parse_ref(text)) for text in ("math", "math@3", "math@best")] == ["math@latest", "math@3", "math@best"]
    for text in ("math@", "math@0", "math@-1", "math@01", "math@1.0", "math@@1", "math@١"):
        with pytest.raises(ConfigError):
            parse_ref(text)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "g" * 64, "../" + "a" * 61, None])
def test_digests_are_hexadecimal(digest):
    with pytest.raises(ConfigError):
        check_digest(digest)


def test_blobs_are_spread_over_folders():
    assert blob_key("ab" + "0" * 62) == "blobs/ab/ab" + "0" * 62
