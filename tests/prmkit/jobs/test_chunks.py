"""An output that is killed anywhere and goes on."""

import json

import pytest

from prmkit.errors import ConfigError, DataError
from prmkit.jobs.chunks import ChunkedOutput, meta_path

SETTINGS = {"seed": 0, "sampling": {"temperature": 1.0, "stop": ()}}


def lines(chunk):
    return [{"chunk": chunk, "line": line} for line in range(chunk % 3)]


def write(path, upto=5):
    with ChunkedOutput(path, SETTINGS) as output:
        for chunk in range(output.chunks, upto):
            output.append(lines(chunk), {"sum": output.state.get("sum", 0) + chunk})
        if upto == 5:
            output.finish(output.state)
        return output


def test_content_and_meta(tmp_path):
    output = write(tmp_path / "x.jsonl")
    assert (output.chunks, output.lines, output.complete, output.state) == (5, 4, True, {"sum": 10})
    rows = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert rows == [row for chunk in range(5) for row in lines(chunk)]
    meta = json.loads(meta_path(tmp_path / "x.jsonl").read_text())
    assert meta["settings"]["sampling"] == {"temperature": 1.0, "stop": []}


@pytest.mark.parametrize("upto", range(5))
@pytest.mark.parametrize("torn", [b"", b'{"chu', b'{"whole":1}\n{"half'])
def test_a_cut_anywhere_leaves_no_trace(tmp_path, upto, torn):
    """Bytes behind the acknowledged ones are those of a chunk whose writer was killed before it acknowledged."""
    write(tmp_path / "whole.jsonl")
    write(tmp_path / "cut.jsonl", upto)
    with (tmp_path / "cut.jsonl").open("ab") as file:
        file.write(torn)
    output = write(tmp_path / "cut.jsonl")
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert output.state == {"sum": 10}
    assert meta_path(tmp_path / "cut.jsonl").read_bytes() == meta_path(tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_are_refused_by_name(tmp_path):
    write(tmp_path / "x.jsonl")
    with pytest.raises(ConfigError, match=r"^sampling.temperature: got 0.5; accepted: 1.0, which .*--overwrite"):
        ChunkedOutput(tmp_path / "x.jsonl", {"seed": 0, "sampling": {"temperature": 0.5, "stop": []}})
    with ChunkedOutput(tmp_path / "x.jsonl", {"seed": 1}, overwrite=True) as output:
        assert (output.chunks, output.complete, output.state) == (0, False, {})
    assert (tmp_path / "x.jsonl").read_bytes() == b""


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("mine\n")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=r"one with x\.jsonl\.meta\.json.*x\.jsonl would be replaced"):
            ChunkedOutput(path, SETTINGS, overwrite=overwrite)
    assert path.read_text() == "mine\n"
    path.unlink()
    write(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"acknowledges .* cut or replaced"):
        ChunkedOutput(path, SETTINGS)


def test_two_writers_are_refused(tmp_path):
    with (
        ChunkedOutput(tmp_path / "x.jsonl", SETTINGS),
        pytest.raises(DataError, match="another process is writing it"),
    ):
        ChunkedOutput(tmp_path / "x.jsonl", SETTINGS)
    write(tmp_path / "x.jsonl")


@pytest.mark.parametrize("torn", [b"", b'{"half'])
def test_a_companion_grows_and_is_cut_with_the_chunks(tmp_path, torn):
    path, beside = tmp_path / "x.jsonl", tmp_path / "y.jsonl"

    def write_both(upto):
        with ChunkedOutput(path, SETTINGS, companion=beside) as output:
            for chunk in range(output.chunks, upto):
                output.append(lines(chunk), {}, beside=[{"tree": chunk}])

    write_both(3)
    with beside.open("ab") as file:
        file.write(torn)
    write_both(4)
    assert [json.loads(line) for line in beside.read_text().splitlines()] == [{"tree": chunk} for chunk in range(4)]
    with (
        ChunkedOutput(tmp_path / "z.jsonl", SETTINGS) as output,
        pytest.raises(ValueError, match="companion"),
    ):
        output.append([], {}, beside=[{"tree": 0}])
    with pytest.raises(ConfigError, match=r"one with w\.jsonl\.meta\.json.*y\.jsonl would be replaced"):
        ChunkedOutput(tmp_path / "w.jsonl", SETTINGS, companion=beside)


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    with ChunkedOutput(tmp_path / "x.jsonl", SETTINGS) as output:
        with pytest.raises(ValueError, match="JSON"):
            output.append([{"good": 1}, {"bad": float("nan")}], {})
        assert output.chunks == 0
    assert (tmp_path / "x.jsonl").read_bytes() == b""
