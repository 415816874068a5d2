"""`prm serve` as real processes, and annotation and search through them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from importlib.util import find_spec

import pytest

from prmkit.cli import main
from prmkit.cli.annotate import AnnotateConfig
from prmkit.cli.annotate import parser as annotate_parser
from prmkit.cli.options import build, expand_servers
from prmkit.errors import ConfigError
from prmkit.io import read_json
from prmkit.resources import find_config
from prmkit.search.rows import read_rows

TASK = ["--task", "accumulator", "--task_options", "{min_ops: 2, max_ops: 2, hard_share: 0.0}", "--limit", "8"]
SAMPLING = ["--sampling.max_tokens", "24", "--in_flight", "3", "--chunk", "3"]
OMEGA = [*TASK, *SAMPLING, "--filter_rollouts", "6", "--rollouts", "3"]
QUICK = ["--engine.http.backoff", "0.05", "--engine.http.dead_after", "1", "--engine.http.patience", "60"]


class Served:
    """A `prm serve` process on a free port."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "prmkit.cli", "serve", "--port", "0", "--engine.device", "cpu", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r" at (http://\S+)", line):
                self.url = found[1]
                break
        else:
            pytest.fail("".join(self.lines))
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True).start()

    def end(self, number):
        self.process.send_signal(number)
        return self.process.wait(60)


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.loads(reply.read())


@pytest.fixture(scope="module")
def served(memorised_policy, memorised_prm):
    """Both models on one server, that lives as long as the module's tests."""
    prm = ["--prm", str(memorised_prm), "--prm_name", "judge"]
    server = Served("--policy", str(memorised_policy), "--policy_name", "writer", *prm)
    yield server
    body = {"model": "writer", "prompt": [5], "n": 500, "max_tokens": 40, "temperature": 10, "seed": 1}
    replies = []
    client = threading.Thread(target=lambda: replies.append(post(f"{server.url}/v1/completions", body)))
    client.start()
    while not json.loads(urllib.request.urlopen(f"{server.url}/health", timeout=60).read())["in_work"]:
        time.sleep(0.01)
    assert server.end(signal.SIGTERM) == 0, "it ends in order"
    client.join(60)
    assert len(replies[0]["choices"]) == 500, "what was in work is answered first"


@pytest.fixture
def tokenizer_only(memorised_policy, tmp_path):
    """What a machine needs of the policy when servers compute it."""
    folder = tmp_path / "tokenizer-only"
    shutil.copytree(
        memorised_policy, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json", "prmkit.json")
    )
    return folder


def annotate(policy, output, *extra):
    return main(["annotate", "--policy", str(policy), "--policy_name", "p", "--output", str(output), *OMEGA, *extra])


def test_annotation_is_the_same_in_process_and_through_servers_of_which_one_dies(
    memorised_policy, tokenizer_only, served, tmp_path, capsys
):
    assert annotate(memorised_policy, tmp_path / "here.jsonl") == 0
    mortal = Served("--policy", str(memorised_policy), "--policy_name", "writer", "--engine.max_rows", "1")
    servers = ["--endpoint", served.url, "--endpoint", mortal.url, "--model", "writer"]
    output = tmp_path / "there.jsonl"

    def kill():
        meta = output.with_name(output.name + ".meta.json")
        while not meta.exists() or read_json(meta)["progress"]["chunks"] < 1:
            time.sleep(0.002)
        os.kill(mortal.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    capsys.readouterr()
    assert annotate(tokenizer_only, output, *servers, *QUICK) == 0
    killer.join(60)
    assert mortal.process.wait(60) == -signal.SIGKILL
    error = capsys.readouterr().err
    assert f"{mortal.url} is taken out (1 of 2 endpoints left)" in error
    assert "annotate: 8/8" in error
    for end in ("", ".trees.jsonl"):
        here, there = (tmp_path / f"{name}.jsonl{end}" for name in ("here", "there"))
        assert there.read_bytes() == here.read_bytes()
    reports = [read_json(tmp_path / f"{name}.jsonl.report.json") for name in ("here", "there")]
    assert reports[0]["counts"] == reports[1]["counts"]
    assert reports[0]["usage"] == reports[1]["usage"]
    settings = read_json(output.with_name("there.jsonl.meta.json"))["settings"]
    assert settings["engine"]["model"] == "writer"
    before = output.read_bytes()
    assert annotate(tokenizer_only, output, "--endpoint", served.url, "--model", "writer") == 0, "complete"
    assert output.read_bytes() == before
    assert annotate(memorised_policy, output) == 2
    assert "engine.dtype: got 'float32'; accepted: None" in capsys.readouterr().err


def test_search_and_regime_with_policy_and_prm_on_servers(
    memorised_policy, memorised_prm, tokenizer_only, served, tmp_path, capsys
):
    options = [*TASK, *SAMPLING, "--n", "4"]
    here = ["--policy", str(memorised_policy), "--prm", str(memorised_prm)]
    there = ["--policy", str(tokenizer_only), "--prm", str(tokenizer_only), "--endpoint", served.url, "--model"]
    there += ["writer", "--prm_endpoint", served.url, "--prm-model", "judge"]
    assert main(["search", *here, "--output", str(tmp_path / "here"), *options]) == 0
    assert main(["search", *there, "--output", str(tmp_path / "there"), *options]) == 0
    ours, theirs = (list(read_rows(tmp_path / name / "rows.jsonl")) for name in ("here", "there"))
    assert [row.traces for row in ours] == [row.traces for row in theirs]
    assert [row.usage for row in ours] == [row.usage for row in theirs]
    figures = [read_json(tmp_path / name / "summary.json")["figures"]["accuracy"] for name in ("here", "there")]
    assert figures[0] == figures[1]
    there[-2] = "--prm_model"
    found = []
    for models in (here, there):
        capsys.readouterr()
        assert main(["regime", *models, *TASK, *SAMPLING[:4], "--split", "test", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["figures"])
    (ours_of,), (theirs_of,) = (figures.pop("prms").values() for figures in found)
    assert (found[0], ours_of) == (found[1], theirs_of)
    beam = ["--method", "beam_search", "--budgets", "4", "--limit", "2", "--greedy", "false"]
    assert main(["search", *there, "--output", str(tmp_path / "beam"), *options[:-2], *beam]) == 0
    assert all(row.usage.scored_tokens > 0 for row in read_rows(tmp_path / "beam" / "rows.jsonl"))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--endpoint", "http://127.0.0.1:9"], "no endpoint answers: http://127.0.0.1:9: "),
        (["--engine", "http"], "engine.http.endpoints: got []"),
        (["--engine", "magic"], "engine: got 'magic'; accepted: hf | http | vllm"),
        (["--endpoint", "localhost:8000"], "http.endpoints: got 'localhost:8000'"),
        (["--endpoint", "URL"], "http.model: got None; accepted: one of writer | judge"),
        (["--endpoint", "URL", "--model", "large"], "http.model: got 'large'; accepted: one of writer | judge"),
        (["--endpoint", "URL", "--model", "judge"], "that of 'judge' there "),
        (["--endpoint", "URL", "--engine.http.concurrency", "0"], "http.concurrency: got 0"),
    ],
)
def test_mistakes_end_in_one_line_before_work_begins(extra, message, served, memorised_policy, tmp_path, capsys):
    extra = [served.url if argument == "URL" else argument for argument in extra]
    assert annotate(memorised_policy, tmp_path / "x.jsonl", *extra, "--engine.http.connect_timeout", "5") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_vllm_that_is_not_installed(memorised_policy, tmp_path, capsys):
    assert annotate(memorised_policy, tmp_path / "x.jsonl", "--engine", "vllm") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is not installed" in error
    assert "pip install" in error


def test_servers_of_other_weights_are_noticed(served, memorised_policy, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(memorised_policy, other)
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-4] ^= 1
    (other / "model.safetensors").write_bytes(bytes(data))
    servers = ["--endpoint", served.url, "--model", "writer"]
    assert annotate(other, tmp_path / "x.jsonl", *servers) == 2
    assert "its content is" in capsys.readouterr().err


@pytest.mark.slow
def test_a_lost_server_ends_the_run_and_leaves_what_can_go_on(memorised_policy, tmp_path, capsys):
    server = Served("--policy", str(memorised_policy), "--policy_name", "writer")
    output = tmp_path / "x.jsonl"
    meta = output.with_name("x.jsonl.meta.json")

    def kill():
        while not meta.exists() or read_json(meta)["progress"]["chunks"] < 1:
            time.sleep(0.002)
        os.kill(server.process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    options = [
        "--endpoint",
        server.url,
        *QUICK[:4],
        "--engine.http.patience",
        "0.2",
        "--chunk",
        "1",
        "--in_flight",
        "1",
    ]
    status = annotate(memorised_policy, output, *options)
    killer.join(60)
    error = capsys.readouterr().err
    if status == 0:
        pytest.skip("the run was over before its server was killed")
    assert "error: no endpoint has answered for 0.2 s" in error
    assert error.count("Traceback") == 0
    state = read_json(meta)
    assert not state["complete"]
    assert state["failures"] == []
    again = Served("--policy", str(memorised_policy), "--policy_name", "writer")
    options[1] = again.url
    assert annotate(memorised_policy, output, *options) == 0
    assert again.end(signal.SIGTERM) == 0
    assert annotate(memorised_policy, tmp_path / "here.jsonl", "--chunk", "1") == 0
    assert output.read_bytes() == (tmp_path / "here.jsonl").read_bytes()


def test_short_flags():
    assert expand_servers(["--engine", "hf", "--x", "1"]) == ["--engine.kind=hf", "--x", "1"]
    urls = ["--endpoint", "http://a", "--endpoint=http://b", "--model", "m"]
    assert expand_servers(urls) == [
        *("--engine.http.model=m", "--engine.kind=http"),
        '--engine.http.endpoints=["http://a", "http://b"]',
    ]
    assert expand_servers(["--engine=vllm"]) == ["--engine.kind=vllm"]
    with pytest.raises(ConfigError, match="endpoint: got ''"):
        expand_servers(["--endpoint"])


def test_endpoints_on_the_command_line_take_the_place_of_those_in_a_config(tmp_path):
    (tmp_path / "c.yaml").write_text("engine: {kind: http, http: {endpoints: [http://a, http://b], model: m}}\n")
    arguments = ["--config", str(tmp_path / "c.yaml"), "--policy", "p", "--output", "o"]
    values = annotate_parser().instantiate(annotate_parser().parse_args(arguments))
    assert values["engine"].http.urls == ("http://a", "http://b")
    arguments = expand_servers([*arguments, "--endpoint", "http://c/v1/"])
    values = annotate_parser().instantiate(annotate_parser().parse_args(arguments))
    assert (values["engine"].http.urls, values["engine"].http.model) == (("http://c",), "m")
    assert build(AnnotateConfig, values).policy == "p"


def test_the_shipped_fragment_goes_behind_any_config():
    files = ("configs/annotate/omegaprm.yaml", "configs/engine/http.yaml")
    configs = [argument for name in files for argument in ("--config", str(find_config(name)))]
    values = annotate_parser().instantiate(annotate_parser().parse_args([*configs, "--policy", "p", "--output", "o"]))
    assert (values["engine"].kind, values["engine"].http.urls) == ("http", ("http://127.0.0.1:8000",))
    assert (values["max_searches"], values["engine"].max_rows) == (100, 256)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "policy: got None"),
        (["--policy", "p", "--port", "99999"], "port: got 99999"),
        (["--policy", "p", "--prm", "p"], "prm_name: got 'p'"),
        (["--policy", "nowhere"], "--policy nowhere: nowhere: no such model folder"),
        (["--policy", "p", "--api_key_env", "NO_SUCH"], "api_key_env: got 'NO_SUCH'"),
    ],
)
def test_mistakes_of_serving(arguments, message, capsys):
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_doctor_asks_endpoints(served, capsys):
    assert main(["doctor", "--json", "--endpoint", served.url]) == 0
    (endpoint,) = json.loads(capsys.readouterr().out)["endpoints"]
    assert endpoint == {"url": served.url, "models": ["writer", "judge"], "reason": None}
    assert main(["doctor", "--endpoint", "http://127.0.0.1:9"]) == 2
    assert "no endpoint answers" in capsys.readouterr().out
