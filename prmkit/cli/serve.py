"""`prm serve`: a policy, a PRM or both behind HTTP, computed in this process."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prmkit.cli.ending import show_ending
from prmkit.cli.loading import fingerprint, load_engine, load_scorer, resolve_model
from prmkit.cli.options import EngineConfig, ScorerConfig, build, make_parser, parse_settings, print_help, wants_help
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.errors import ConfigError

if TYPE_CHECKING:
    from prmkit.serving.app import ServedModel

__all__ = ["SUMMARY", "ServeConfig", "parser", "run"]

SUMMARY = "serve a policy and a PRM over HTTP, for annotation and search on other machines"

EXAMPLES = """
examples:
  prm serve --policy runs/demo/sft/policy --port 8000
  prm serve --policy P --prm M --host 0.0.0.0 --port 8000 --api_key_env PRM_KEY
  prm annotate --config C --policy P --output steps.jsonl --endpoint http://HOST:8000

Answers /v1/completions (OpenAI's, with token ids as prompts and in answers), /pooling (vLLM's, token classification),
/v1/models and /health. The samples are those of the in-process engine, bit for bit. SIGTERM ends it, after what is in
work was answered. Fields that it does not know are refused. Without --api_key_env anybody who can reach the port can
use it: keep it on loopback or a private network."""


@dataclass(frozen=True)
class ServeConfig:
    """What to serve, and where. At least one of policy and prm is set.

    Attributes:
        policy: model folder or hub name of the policy.
        prm: model folder or hub name of the PRM.
        policy_name, prm_name: their names for clients; null takes `policy` and `prm` as given.
        policy_format, prm_format: step format in place of the model's own: a preset, a file or a folder.
        host: address to listen at; 0.0.0.0 is all of this machine.
        port: 0 takes a free one, which is printed.
        api_key_env: environment variable that holds a bearer token that requests must carry; null asks for none.
        max_waiting: requests in work at most, more are told to come back; at least 1.
    """

    policy: str | None = None
    prm: str | None = None
    policy_name: str | None = None
    prm_name: str | None = None
    policy_format: str | None = None
    prm_format: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_env: str | None = None
    max_waiting: int = 4096

    def __post_init__(self) -> None:
        if self.policy is None and self.prm is None:
            raise ConfigError("policy", None, "a model folder or hub name, unless --prm is given")
        if not 0 <= self.port < 65536:
            raise ConfigError("port", self.port, "an integer from 0 to 65535")
        if self.max_waiting < 1:
            raise ConfigError("max_waiting", self.max_waiting, "an integer of at least 1")
        names = [self.policy_name or self.policy, self.prm_name or self.prm]
        if names[0] == names[1]:
            raise ConfigError("prm_name", names[1], "another name than the policy's")


def parser() -> Any:
    """The command's parser."""
    return make_parser(
        "prm serve",
        "prm serve [--config FILE] [--policy PATH] [--prm PATH] [--host HOST] [--port PORT] [--KEY VALUE ...]",
        (ServeConfig,),
        {"engine": EngineConfig, "scorer": ScorerConfig},
    )


def run(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    parse = parser()
    if wants_help(argv):
        print_help(parse, SUMMARY, EXAMPLES)
        return 0
    arguments, _ = expand_configs(argv)
    with user_errors("prm serve", parse):
        values = parse_settings(parse, arguments)
        config = build(ServeConfig, values)
    for name in ("engine", "scorer"):
        if values[name].kind != "hf":
            raise ConfigError(f"{name}.kind", values[name].kind, "hf: this server computes in its own process")
    key = _api_key(config.api_key_env)
    _check_address(config.host, config.port)
    for member in ("policy", "prm"):
        if getattr(config, member) is not None:
            resolve_model(getattr(config, member), getattr(config, f"{member}_format"), member)
    with ExitStack() as stack:
        policy, prm = _policy(config, values, stack), _prm(config, values, stack)
        from prmkit.serving.app import make_app
        from prmkit.serving.run import Answers, serve

        app = make_app(policy, prm, api_key=key, max_waiting=config.max_waiting)
        answers = Answers(app)
        names = " and ".join(model.name for model in (policy, prm) if model is not None)
        serve(app, config.host, config.port, lambda url: print(f"{names} at {url}", file=sys.stderr, flush=True))
    show_ending([], [answers.describe()], [("prm", "serve", *argv)])
    return 0


def _check_address(host: str, port: int) -> None:
    """Raise ConfigError unless the address can be listened at, before models are loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError("host", host, f"an address of this machine ({error.strerror})") from None
    try:
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
    except OSError as error:
        raise ConfigError("port", port, f"a free port of {host} ({error.strerror})", "0 takes any.") from None


def _policy(config: ServeConfig, values: Any, stack: ExitStack) -> ServedModel | None:
    if config.policy is None:
        return None
    folder, step_format = resolve_model(config.policy, config.policy_format, "policy")
    from prmkit.engines.inprocess.hf import HFEngine
    from prmkit.serving.app import ServedModel

    engine = load_engine(folder, step_format, values["engine"], stack)
    assert isinstance(engine, HFEngine)
    return ServedModel(config.policy_name or config.policy, fingerprint(folder), engine.weight_version, engine)


def _prm(config: ServeConfig, values: Any, stack: ExitStack) -> ServedModel | None:
    if config.prm is None:
        return None
    folder, step_format = resolve_model(config.prm, config.prm_format, "prm")
    from prmkit.models.folders import read_card
    from prmkit.scoring.prm import PRMScorer
    from prmkit.serving.app import ServedModel

    scorer = load_scorer(folder, step_format, values["scorer"], stack, values["engine"].device)
    assert isinstance(scorer, PRMScorer)
    card = read_card(folder)
    version = card.weight_version if card else 0
    return ServedModel(config.prm_name or config.prm, fingerprint(folder), version, scorer)


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError("api_key_env", variable, "a variable of the environment that holds the token")
    return key
