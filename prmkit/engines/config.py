"""Settings of engines: which kind, how the in-process one computes, and how servers are reached.

Plain records, checked when they are made; nothing here reads files, opens connections or imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from prmkit.errors import ConfigError
from prmkit.plugins import Catalogue
from prmkit.protocols import Engine

__all__ = [
    "ENGINES",
    "EngineConfig",
    "EngineKind",
    "EngineName",
    "HttpConfig",
    "HttpEngineConfig",
    "register_engine",
]


@dataclass(frozen=True, slots=True)
class EngineKind:
    """A kind of engine.

    Attributes:
        open: opens one, with the arguments of `prmkit.engines.factory.open_engine`; text `module:attribute` stands for
            a function of this package that is imported on use.
        weights: it computes with the weights of the policy's folder; otherwise tokenizer and step format are enough.
    """

    open: str | Callable[..., Engine]
    weights: bool = True


ENGINES: Catalogue[EngineKind] = Catalogue(
    "engine",
    {
        "hf": EngineKind("prmkit.engines.factory:open_hf"),
        "http": EngineKind("prmkit.engines.factory:open_http", weights=False),
        "vllm": EngineKind("prmkit.engines.factory:open_vllm"),
    },
)
EngineName = Annotated[str, ENGINES]
_BUILT_IN = ENGINES.known

Made = TypeVar("Made", bound=Callable[..., Any])


def register_engine(name: str, *, weights: bool = True) -> Callable[[Made], Made]:
    """Register an engine that samples for `prm annotate` and `prm search`: `--engine NAME`, `engine.kind: NAME`.

    Decorates `(config, folder, step_format, stack, *, logprobs) -> prmkit.protocols.Engine`, see
    `prmkit.engines.factory.open_engine`; its settings are the mapping `config.options`.

    Args:
        name: the engine's name.
        weights: it computes with the weights of the policy's folder; otherwise tokenizer and step format are enough.
    """

    def register(make: Made) -> Made:
        ENGINES.add(name, EngineKind(make, weights), make)
        return make

    return register


@dataclass(frozen=True)
class HttpConfig:
    """How servers are reached.

    Attributes:
        endpoints: base addresses of servers of the same model, e.g. http://gpu-1:8000; a trailing /v1 may stand.
        model: name that the servers give the model; null takes the only one that they serve.
        api_key_env: environment variable that holds the bearer token; null sends none.
        concurrency: requests in flight at each endpoint at most; at least 1.
        timeout: seconds for one request, from sending to the last byte; above 0.
        connect_timeout: seconds until a connection stands; above 0.
        retries: further attempts of a request that an endpoint failed on; at least 0.
        backoff: seconds before the second attempt, doubled (with jitter) before each further one; above 0.
        dead_after: failures in a row after which an endpoint is taken out; at least 1.
        probe_every: seconds between attempts to get a dead endpoint back; above 0.
        patience: seconds to wait while all endpoints are dead, or while one answers that it is busy, before giving up.
        startup: seconds to wait at the beginning until the first endpoint answers; 0 asks once.
    """

    endpoints: list[str] = field(default_factory=list)
    model: str | None = None
    api_key_env: str | None = None
    concurrency: int = 256
    timeout: float = 600.0
    connect_timeout: float = 10.0
    retries: int = 5
    backoff: float = 0.5
    dead_after: int = 3
    probe_every: float = 5.0
    patience: float = 300.0
    startup: float = 0.0

    def __post_init__(self) -> None:
        for url in self.endpoints:
            _check_url(url)
        if len({base_url(url) for url in self.endpoints}) < len(self.endpoints):
            raise ConfigError("http.endpoints", self.endpoints, "different addresses")
        for name, least in (("concurrency", 1), ("retries", 0), ("dead_after", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"http.{name}", getattr(self, name), f"an integer of at least {least}")
        for name in ("timeout", "connect_timeout", "backoff", "probe_every"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"http.{name}", getattr(self, name), "seconds, above 0")
        for name in ("patience", "startup"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"http.{name}", getattr(self, name), "seconds, at least 0")

    @property
    def urls(self) -> tuple[str, ...]:
        """The endpoints' addresses without a trailing /v1."""
        return tuple(base_url(url) for url in self.endpoints)


@dataclass(frozen=True)
class HttpEngineConfig(HttpConfig):
    """How a policy's servers are reached and asked.

    Attributes:
        prompts: "ids" sends prompts as token ids and reads the ids that the server sampled; a server that cannot is
            refused. "text" sends and reads text, for servers that know no ids: samples are tokenised again, their ids
            may differ from those sampled, and they have no log-probabilities.
        split_samples: ask for n samples with n requests, request i with seed + i, for servers that ignore `n`.
    """

    prompts: Literal["ids", "text"] = "ids"
    split_samples: bool = False


@dataclass(frozen=True)
class EngineConfig:
    """Where and how the policy computes.

    Attributes:
        kind: hf computes in this process, http asks servers (see http), vllm runs vLLM in this process (see vllm);
            engines registered from outside have names of their own (see options).
        max_rows: of hf: samples decoded together at most; at least 1.
        cache_tokens: of hf: tokens of prefixes whose keys and values are kept; 0 keeps none.
        dtype: of hf and vllm: type of the weights.
        device: of hf: e.g. cpu, cuda, cuda:1; auto is a GPU where there is one. A PRM in this process goes to the same
            place.
        http: how the servers are reached.
        vllm: options of vLLM, by name, e.g. {gpu_memory_utilization: 0.4, tensor_parallel_size: 2}.
        options: settings of an engine registered from outside, by name.
    """

    kind: EngineName = "hf"
    max_rows: int = 128
    cache_tokens: int = 65536
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    http: HttpEngineConfig = field(default_factory=HttpEngineConfig)
    vllm: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", ENGINES.name_of(self.kind, "engine.kind"))
        if self.options and self.kind in _BUILT_IN:
            raise ConfigError("engine.options", self.options, f"nothing with the engine {self.kind}")
        if self.kind == "http" and not self.http.endpoints:
            raise ConfigError(
                "engine.http.endpoints", [], "at least one server's address", "Give --endpoint http://HOST:PORT."
            )

    @property
    def weights(self) -> bool:
        """True if the engine computes with the weights of the policy's folder."""
        return ENGINES[self.kind].weights


def base_url(url: str) -> str:
    """An endpoint's address without a trailing slash or /v1."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("http.endpoints", url, "an address like http://HOST:PORT or https://HOST/PATH")
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigError("http.endpoints", url, f"an address with a port from 0 to 65535 ({error})") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "http.endpoints",
            f"{parts.scheme}://{parts.hostname}",
            "an address without user, query or fragment",
            "Name the variable that holds a token with api_key_env.",
        )
