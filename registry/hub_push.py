"""A version as two repositories on the Hugging Face hub: `hf://ORGANISATION/NAME` is NAME-policy and NAME-prm there.

The hub's own client talks to it: token, endpoint (HF_ENDPOINT) and proxies are its settings. Every version gets a tag.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prmkit.errors import ConfigError, DataError
from registry.errors import ConflictError
from registry.hub import write_hub_layout
from registry.pull import PULLED_FILE, PulledPair

if TYPE_CHECKING:
    from registry.cards import Heritage

__all__ = ["HUB_SCHEME", "parse_hub_url", "push_to_hub"]

HUB_SCHEME = "hf://"
_PLACE = re.compile(r"hf://([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")
_OURS_ANYWAY = {".gitattributes"}  # the hub makes it


def parse_hub_url(url: str) -> tuple[str, str]:
    """Organisation and name of `hf://ORGANISATION/NAME`; ConfigError for another text."""
    found = _PLACE.fullmatch(url)
    if found is None:
        raise ConfigError("REMOTE", url, "hf://ORGANISATION/NAME, of letters, digits and . _ -")
    return found[1], found[2]


def push_to_hub(
    pulled: PulledPair, url: str, heritage: Heritage, *, private: bool = False, api: Any = None
) -> list[str]:
    """Upload both models with their cards; returns the repositories' addresses.

    Files of an earlier version that this one does not have are removed; their tag keeps them.

    Args:
        pulled: a version on this machine.
        url: `hf://ORGANISATION/NAME`.
        heritage: what the cards say of its ancestors.
        private: make new repositories private; those that exist stay as they are.
        api: a `huggingface_hub.HfApi`; None makes one.

    Raises:
        ConfigError: another url.
        ConflictError: a repository of that name holds something else.
        DataError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    refusals: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError)  # the HTTP library's, and offline
    organisation, name = parse_hub_url(url)
    hub = HfApi() if api is None else api
    version = pulled.manifest.version
    try:
        with tempfile.TemporaryDirectory(prefix="prmkit-") as folder:
            places = write_hub_layout(pulled, folder, organisation=organisation, name=name, heritage=heritage)
            repositories = {f"{organisation}/{place.name}": place for place in places.values()}
            for repository in repositories:
                hub.create_repo(repository, private=private or None, exist_ok=True)
                _check_ours(hub.list_repo_files(repository), repository)
            for repository, place in repositories.items():
                hub.upload_folder(
                    repo_id=repository,
                    folder_path=Path(place),
                    commit_message=f"{pulled.manifest.ref}",
                    delete_patterns=["*"],
                )
                hub.create_tag(repository, tag=f"v{version}", exist_ok=True)
    except refusals as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{url}: the hub at {hub.endpoint} does not take it: {reason}. A push needs a network and a token that may "
            f"write for {organisation} (HF_TOKEN, or `hf auth login`)."
        ) from error
    return [f"{hub.endpoint}/{repository}" for repository in repositories]


def _check_ours(files: list[str], repository: str) -> None:
    if PULLED_FILE not in files and set(files) - _OURS_ANYWAY:
        raise ConflictError(
            f"{repository}: holds something else ({sorted(set(files) - _OURS_ANYWAY)[0]}); push under another name"
        )
