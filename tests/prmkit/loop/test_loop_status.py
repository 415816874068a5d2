"""The status of a run folder whose stages are real processes: before, while they work, after a kill, at the end."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from prmkit.cli import main
from prmkit.errors import DataError
from prmkit.loop.status import read_status

CONFIG = {"pair": "toy", "iterations": 2, "seed": 0, "start": None, "alias": "best", "order": "policy_first"}

RUNNER = """
    import sys, time
    from pathlib import Path
    from prmkit.jobs.stages import Stage, StageRunner
    run = Path(sys.argv[1])
    def stage(name, folder, code):
        return Stage(name, (sys.executable, "-I", "-S", "-u", "-c", code), folder)
    with StageRunner(run) as runner:
        runner.run(stage("sft", run / "sft", "print('made a policy')"))
        work = "print('5/9', end='\\\\r'); import time; time.sleep(60)"
        runner.run(stage("1-annotate", run / "iteration-1" / "annotate", work))
"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "loop.json").write_text(json.dumps(CONFIG))
    return tmp_path


def states(run: Path) -> dict[str, str]:
    return {f"{s.iteration}-{s.name}": s.state for s in read_status(run, "loop.json").stages if s.state != "waiting"}


def wait_for(condition, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


def test_before_during_and_after_a_kill(run, capsys):
    assert states(run) == {}
    assert len(read_status(run, "loop.json").stages) == 1 + 2 * 6
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(RUNNER), str(run)])
    wait_for(lambda: any(stage.said == "5/9" for stage in read_status(run, "loop.json").stages))
    found = read_status(run, "loop.json")
    assert found.process == process.pid
    assert states(run) == {"0-sft": "complete", "1-annotate": "running"}
    assert found.current is not None
    assert found.current.name == "annotate"
    assert main(["loop", "status", str(run)]) == 0
    assert f"process {process.pid} at work" in capsys.readouterr().out

    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: read_status(run, "loop.json").process is None)
    assert states(run) == {"0-sft": "complete", "1-annotate": "interrupted"}
    assert main(["loop", "status", str(run), "--watch", "0.1"]) == 0  # ends at once: nothing is at work
    text = capsys.readouterr().out
    assert "not running" in text
    assert "annotate of iteration 1 interrupted" in text
    assert "the command that started it goes on" in text


def test_versions_and_what_was_pulled(run, capsys):
    figures = {"accuracy": {"value": 0.75}, "pass_at_1": {"value": 0.5}}
    manifest = {"pair": "toy", "version": 4, "metrics": {"figures": figures}, "gate": {"passed": True}}
    for place in ("iteration-1/pull", "iteration-1/gate", "iteration-2/publish"):
        (run / place).mkdir(parents=True)
        (run / place / ".stage.json").write_text(json.dumps({"name": "x", "key": "k", "attempts": 2, "seconds": 1.5}))
        (run / place / ".complete.json").write_text("{}")
    (run / "iteration-1/pull/pair").mkdir()
    (run / "iteration-1/pull/pair/pair.json").write_text(json.dumps(manifest))
    (run / "iteration-1/gate/gate.json").write_text(json.dumps({"promoted": True}))
    refused = {**manifest, "version": 5, "gate": {"passed": False}}
    (run / "iteration-2/publish/published.json").write_text(json.dumps(refused))
    found = read_status(run, "loop.json")
    assert [s.name for s in found.stages] == [
        "pull",
        "gate",
        *("policy", "annotate", "prm", "evaluate", "publish", "gate"),
    ]
    main(["loop", "status", str(run)])
    text = capsys.readouterr().out
    assert "toy@4: pass_at_1 0.500, accuracy 0.750; gate passed, is best" in text
    assert "toy@5: pass_at_1 0.500, accuracy 0.750; gate refused" in text
    assert main(["loop", "status", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["1"]["version"] == 4


def test_a_folder_without_a_loop(tmp_path, capsys):
    with pytest.raises(DataError, match="no loop was started there"):
        read_status(tmp_path, "loop.json")
    assert main(["loop", "status", str(tmp_path)]) == 2
