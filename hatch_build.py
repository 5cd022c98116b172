"""The long description of the archives: the README without links, which lead nowhere outside of the repository."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?:)[^)]*\)\n\n(?:.+\n)+\n?", re.MULTILINE)  # and its caption
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)([^)#]*)[^)]*\)")
NOTE = "The files that are named here are in the source archive.\n"


def description(readme: str) -> str:
    """The README with links into the repository as the names of files, and without pictures."""

    def file(link: re.Match[str]) -> str:
        label, path = link.groups()
        return label if label == path else f"{label} ({path})"

    return f"{LINK.sub(file, PICTURE.sub('', readme))}\n{NOTE}"


class Description(MetadataHookInterface):
    """Sets ``readme``, which pyproject.toml declares as dynamic."""

    def update(self, metadata: dict) -> None:
        """Add the description to the metadata of the project."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(readme)}
