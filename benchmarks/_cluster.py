"""Two nodes on one machine: an elastic agent each, as `torchrun` runs it, with one worker; to be killed and restarted.

A node is a process session of its own. What is loaded before the nodes start is shared with all of them by fork, so
that a restart costs a second and not the ten of a fresh Python. Nodes meet on loopback, or are two hosts: network
namespaces with an interface each.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cluster", "Host", "loopback", "namespaces"]

MAX_RESTARTS = 100
_FORK = multiprocessing.get_context("fork")
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Host:
    """Where a node runs: address and interface, and the network namespace it is in, None for the machine's own."""

    address: str
    interface: str
    namespace: str | None = None


def loopback() -> tuple[Host, Host]:
    """Both nodes on this host."""
    return Host("127.0.0.1", "lo"), Host("127.0.0.1", "lo")


class namespaces:  # noqa: N801 - used like `loopback`
    """Context: two joined network namespaces. OSError or CalledProcessError where they are not allowed."""

    def __init__(self) -> None:
        self._tag = f"prm{os.getpid() % 100000}"

    def __enter__(self) -> tuple[Host, Host]:
        names = [f"{self._tag}{n}" for n in "ab"]
        try:
            for name in names:
                _ip("netns", "add", name)
            _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
            for number, name in enumerate(names):
                _ip("link", "set", name, "netns", name)
                _ip("-n", name, "addr", "add", f"10.213.7.{number + 1}/24", "dev", name)
                _ip("-n", name, "link", "set", name, "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return Host("10.213.7.1", names[0], names[0]), Host("10.213.7.2", names[1], names[1])

    def __exit__(self, *_exception: object) -> None:
        for n in "ab":
            with suppress(subprocess.CalledProcessError, OSError):
                _ip("netns", "delete", f"{self._tag}{n}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/var/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"network namespace {namespace}")


def _work(argv: list[str]) -> None:
    """A worker: `prm`, with its exit status."""
    from prmkit.cli import main

    status = main(argv)
    if status:
        sys.exit(status)


def _node(number: int, host: Host, endpoint: str, argv: list[str], log: Path) -> None:
    """An agent, from its start to its end."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if host.namespace is not None:
        _enter(host.namespace)
    os.environ |= {"GLOO_SOCKET_IFNAME": host.interface, "OMP_NUM_THREADS": "1"}
    # An agent that goes on from one round to the next would not tell a new peer where the workers' store is.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=2,
        max_nodes=2,
        nproc_per_node=1,
        run_id="prm",
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        # the store is held by the first node; last_call is how long a full house waits for one more
        rdzv_configs={"is_host": number == 0, "join_timeout": 300, "last_call_timeout": 1, "keep_alive_interval": 1},
        local_addr=host.address,
        max_restarts=MAX_RESTARTS,
        start_method="fork",
    )
    elastic_launch(config, _work)(argv)


class Cluster:
    """Runs one `prm` command on two nodes, starting again what dies, until both nodes end well.

    Args:
        hosts: of the two nodes; the first holds the rendezvous.
        argv: arguments of `prm`.
        log: folder of the nodes' logs.
    """

    def __init__(self, hosts: Sequence[Host], argv: Sequence[str], log: Path) -> None:
        self._hosts, self._argv, self._log = hosts, list(argv), log
        log.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._endpoint = f"{hosts[0].address}:{free.getsockname()[1]}"
        self._nodes = [self._start(number) for number in range(2)]
        self.starts = 2

    def _start(self, number: int) -> multiprocessing.process.BaseProcess:
        log = self._log / f"node-{number}.log"
        node = _FORK.Process(target=_node, args=(number, self._hosts[number], self._endpoint, self._argv, log))
        node.start()
        return node

    def look(self) -> bool:
        """True when both nodes have ended well; a node that has not is started again, and its peer when it is gone."""
        codes = [node.exitcode for node in self._nodes]
        if codes == [0, 0]:
            return True
        for number, code in enumerate(codes):
            if code is not None and (code != 0 or codes[1 - number] not in (None, 0)):
                _kill_session(self._nodes[number])
                self._nodes[number] = self._start(number)
                self.starts += 1
        return False

    def kill(self, number: int, how: str) -> None:
        """SIGKILL to a "node" (agent and worker), SIGKILL to its "worker" only, or SIGTERM to the agent ("term")."""
        node = self._nodes[number]
        if node.pid is None or not node.is_alive():
            return
        if how == "node":
            _kill_session(node)
        elif how == "term":
            os.kill(node.pid, signal.SIGTERM)
        else:
            for worker in _children(node.pid):
                with suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)

    def close(self) -> None:
        """Kill whatever is left."""
        for node in self._nodes:
            _kill_session(node)

    def tail(self, characters: int = 2000) -> str:
        """The ends of both logs."""
        texts = [path.read_text(errors="replace")[-characters:] for path in sorted(self._log.glob("*.log"))]
        return "\n---\n".join(texts)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill_session(node: multiprocessing.process.BaseProcess) -> None:
    """SIGKILL to a node's agent, and to its worker, which has a session of its own or not."""
    if node.pid is None:
        return
    with suppress(OSError):
        for child in _children(node.pid):
            os.kill(child, signal.SIGKILL)
    node.kill()
    node.join()


def wait(cluster: Cluster, seconds: float) -> None:
    """Until both nodes have ended well. TimeoutError with the logs' ends."""
    deadline = time.monotonic() + seconds
    while not cluster.look():
        if time.monotonic() > deadline:
            raise TimeoutError(f"two nodes did not end in {seconds:.0f} s:\n{cluster.tail()}")
        time.sleep(0.05)
