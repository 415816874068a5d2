"""How long a command takes is measured once, in docs/results.md; every other place says the same."""

import re
from pathlib import Path

import pytest

from prmkit.cli import COMMANDS, demo, loop
from prmkit.resources import shipped_configs

ROOT = Path(__file__).parents[1]
PLAIN_TIME = re.compile(r"([\d,.]+) s on two cores")
VAGUE = re.compile(
    r"\b(about|some|half) (a |an |\d+ )?(second|minute|hour)s?\b|\b(two|three|five|seven) minutes\b|in minutes\b"
)


def measured() -> dict[str, str]:
    """Seconds by command."""
    rows = re.findall(r"^\| `(prm [^`]+)` \| (\d+) \|", (ROOT / "docs/results.md").read_text(), re.M)
    assert len(rows) == len(dict(rows)) > 5
    return dict(rows)


def statements() -> dict[str, str]:
    """Texts that may say how long something takes, by the command that they are about."""
    found = {
        f"prm {name.split('/')[1] if name.split('/')[1] in COMMANDS else 'fit'} --config {name}": "\n".join(
            line for line in (ROOT / name).read_text().splitlines() if line.startswith("#")
        )
        for name in shipped_configs()
    }
    readme = (ROOT / "README.md").read_text()
    assert "Two iterations of the loop take" in readme
    of_loop = re.search(r"Two iterations of the loop take[^.]*", readme)
    found["prm loop --config configs/loop/accumulator.yaml"] += loop.EXAMPLES + of_loop[0]
    found["prm demo"] = readme.replace(of_loop[0], "") + demo._EPILOG + COMMANDS["demo"].summary
    return found


@pytest.mark.parametrize("command", statements())
def test_places_agree(command):
    text = statements()[command]
    for seconds in PLAIN_TIME.findall(text):
        assert seconds == measured()[command]
    assert not VAGUE.search(text), VAGUE.search(text)


def test_the_places_that_users_read_say_it():
    for command in ("prm demo", "prm fit --config configs/sft/accumulator.yaml"):
        assert PLAIN_TIME.search(statements()[command])
