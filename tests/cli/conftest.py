"""A tiny policy that has learned a few problems by heart, so that commands have something true to work on."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from prmkit.formats.bound import BoundStepFormat


@pytest.fixture(scope="session")
def memorised_policy(tmp_path_factory):
    """Folder of a policy that knows test and train problems 0 to 7 of two operations, each in two teachers' words."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from prmkit.models import save_policy
    from prmkit.tasks import get_task

    task = get_task("accumulator", min_ops=2, max_ops=2, hard_share=0.0)
    tokenizer = task.tokenizer()
    bound = BoundStepFormat(task.step_format, tokenizer)
    problems = [*task.problems("test", 8), *task.problems("train", 8)]
    rows = [
        (bound.prompt_ids(p.question), bound.solution_ids(text))
        for p in problems
        for text in (p.solution, task.demonstration(p, 1))
    ]
    ids = torch.zeros(len(rows), max(len(a) + len(b) for a, b in rows), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for i, (prompt, solution) in enumerate(rows):
        ids[i, : len(prompt) + len(solution)] = torch.tensor(prompt + solution)
        labels[i, len(prompt) : len(prompt) + len(solution)] = torch.tensor(solution)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    model = Qwen2ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(50):
        optimizer.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("memorised") / "policy"
    save_policy(model.eval(), tokenizer, task.step_format, folder)
    return folder


@pytest.fixture(scope="session")
def memorised_prm(memorised_policy, as_prm):
    """The same model as a PRM that was never trained."""
    return as_prm(memorised_policy)


def wait_for_orphans(run: Path) -> None:
    """A stage's process is killed with its parent, but not in the same instant."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        alive = subprocess.run(["pgrep", "-f", str(run)], capture_output=True, check=False).stdout
        if not alive.strip():
            return
        time.sleep(0.1)
    raise AssertionError("a stage outlived its killed parent")


@pytest.fixture
def killed_at_random():
    """Runs a command of stages again and again until it is complete, and kills its first `kills` processes at moments
    between `waits` seconds."""

    def run(command, folder, complete, *, kills, waits, seed, timeout, env):
        rng, landed = random.Random(seed), 0
        while not complete():
            process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if kills > 0:
                time.sleep(rng.uniform(*waits))
                process.send_signal(signal.SIGKILL)
                kills -= 1
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode in (0, -signal.SIGKILL), errors.decode()
            landed += process.returncode == -signal.SIGKILL
            wait_for_orphans(folder)
        assert landed > 1, "hardly anything was killed"

    return run


@pytest.fixture
def killed_at_rows():
    """Runs a command once for every target, killed as soon as its file has that many rows; the last one ends well."""

    def run(command, rows, targets):
        kills = 0
        for target in targets:
            process = subprocess.Popen(command)
            while process.poll() is None:
                if rows.exists() and rows.read_bytes().count(b"\n") >= target:
                    process.kill()
                    kills += 1
                    break
                time.sleep(0.002)
            process.wait()
        assert process.returncode == 0
        assert kills > 0

    return run
