"""Makes the README of the package page: links and pictures that are relative in the repository become absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)")


class ReadmeHook(MetadataHookInterface):  # type: ignore[misc]
    """Sets `project.readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = metadata["urls"]["Repository"]
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        raw = repository.replace("https://github.com/", "https://raw.githubusercontent.com/")

        def absolute(link: re.Match[str]) -> str:
            place = f"{raw}/main" if link[1] else f"{repository}/blob/main"
            return f"{link[1]}[{link[2]}]({place}/{link[3]})"

        metadata["readme"] = {"content-type": "text/markdown", "text": _LINK.sub(absolute, text)}
