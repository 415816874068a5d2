"""`--prm` of commands that take several PRMs, and whether a policy's steps are those that a PRM was trained on."""

from __future__ import annotations

from collections.abc import Sequence

from prmkit.errors import ConfigError, StepFormatError
from prmkit.steps import StepFormat

__all__ = ["PRM_FLAGS", "check_steps_fit", "gathered_prms", "prm_list"]

PRM_FLAGS = """
  --prm_endpoint URL         a server of the PRM; again for each further one (--scorer.http.endpoints)
  --prm_model NAME           its name there (--scorer.http.model)"""


def prm_list(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Folders or names of PRMs from a list, or from text with commas; none from None.

    Raises:
        ConfigError: an empty one, or the same one twice.
    """
    if value is None:
        return ()
    names = tuple(text.strip(" '\"") for text in (value.strip("[]").split(",") if isinstance(value, str) else value))
    for name in names:
        if not name or names.count(name) > 1:
            raise ConfigError("prm", value, "different model folders or hub names, separated by commas")
    return names


def gathered_prms(arguments: Sequence[str]) -> list[str]:
    """The arguments with all `--prm` in place of the first, separated by commas."""
    kept: list[str] = []
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag == "--prm":
            found.append(value if equals else next(rest, ""))
        else:
            kept.append(argument)
    return [*kept, "--prm", ",".join(found)] if found else kept


def check_steps_fit(policy: tuple[str, StepFormat], other: tuple[str, StepFormat], option: str) -> None:
    """Refuse a PRM or discriminator whose steps end otherwise than the policy's (StepFormatError).

    Args:
        policy, other: path or name, and step format.
        option: of the other: "prm" or "discriminator".
    """
    ours, theirs = policy[1].policy.separator, other[1].policy.separator
    if ours == theirs:
        return
    called = "PRM" if option == "prm" else option
    raise StepFormatError(
        f"policy and {called} do not fit: steps of {policy[0]} end with {ours!r}, those {other[0]} was trained "
        f"on with {theirs!r}. Take a {called} trained on this policy's steps, or name the format with "
        f"--{option}_format or --policy_format."
    )
