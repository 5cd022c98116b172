"""Build the site: ``python docs/build.py`` writes it to ``build/site``, ``python docs/build.py serve`` shows it.

The pages in ``docs/``, those of the recipes and of the root, the notebooks and the generated reference are put together
in ``build/pages`` with links that hold there; Zensical makes the site from them and refuses broken ones. Files of
the repository that a page links to are copied.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from latex2mathml.converter import convert
from reference import reference_pages

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "pages"
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")
CODE = re.compile(r"(^ *```.*?^ *```|^(?: {4}[^\n]*\n)+|`(?:[^`\n]|\n(?!\n))+`)", re.DOTALL | re.MULTILINE)
FENCE = re.compile(r"^```(\w*)\n(.*?^```)$", re.DOTALL | re.MULTILINE)
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)


def sources() -> dict[Path, str]:
    """Each page of the repository with its path in the site."""
    found = {page: page.name for page in (ROOT / "docs").glob("*.md")}
    found |= {ROOT / f"{name}.md": f"{name.lower()}.md" for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY")}
    found |= {page: f"notebooks/{page.stem}.md" for page in (ROOT / "notebooks").glob("*.ipynb")}
    for page in (ROOT / "recipes").rglob("*.md"):
        parts = page.relative_to(ROOT / "recipes").with_suffix("").parts
        if parts[0] != "results":
            name = "_".join(part for part in parts if part != "README") or "index"
            found[page] = f"results/{name}.md"
    return found


def notebook_text(file: Path) -> str:
    """A notebook in Markdown: its texts, code and outputs, pictures inline."""
    blocks = []
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        blocks.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                picture = "".join(data["image/png"]).replace("\n", "")
                base64.b64decode(picture, validate=True)
                blocks.append(f"![Output of the cell above](data:image/png;base64,{picture})")
            elif output.get("name") != "stderr" and (text := "".join(data.get("text/plain", [])).strip()):
                blocks.append(f"```text\n{text}\n```")
    return "\n\n".join(blocks) + "\n"


def with_links(text: str, source: Path, target: str, pages: dict[Path, str]) -> str:
    """The text with links that hold in the site; one to a folder becomes plain text.

    Raises:
        FileNotFoundError: There is nothing where a link leads.
    """

    def replaced(found: re.Match[str]) -> str:
        label, path, anchor = found[1], found[2], found[3] or ""
        if not path:
            return found[0]
        linked = (source.parent / path).resolve()
        if linked == ROOT / "README.md":
            place, anchor = "index.md", ""
        elif linked in pages:
            place = pages[linked]
        elif linked.parent == ROOT / "docs" / "reference":  # which Zensical checks
            place = f"reference/{linked.name}"
        elif linked.is_dir():
            return label[1:-1]
        else:
            place = f"files/{linked.relative_to(ROOT).as_posix()}"
            (PAGES / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(linked, PAGES / place)
        return f"{label}({os.path.relpath(place, Path(target).parent)}{anchor})"

    return outside_code(LINK, replaced, text)


def outside_code(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    """The text with every match outside of code replaced."""
    parts = CODE.split(text)
    return "".join(part if index % 2 else pattern.sub(replace, part) for index, part in enumerate(parts))


def with_commands(text: str) -> str:
    """The text with blocks of commands, which name no language, as those of a shell."""
    return FENCE.sub(lambda found: f"```{found[1] or 'bash'}\n{found[2]}", text)


def mathml(found: re.Match[str]) -> str:
    """A formula as browsers show it without a script."""
    return convert(found[1] or found[2], display="block" if found[1] else "inline")


def assemble() -> None:
    """Write all pages to ``build/pages``."""
    shutil.rmtree(PAGES, ignore_errors=True)
    pages = sources()
    for source, target in pages.items():
        text = notebook_text(source) if source.suffix == ".ipynb" else source.read_text(encoding="utf-8")
        text = with_commands(outside_code(MATH, mathml, with_links(text, source, target, pages)))
        (PAGES / target).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / target).write_text(text, encoding="utf-8")
    (PAGES / "reference").mkdir()
    for name, text in reference_pages().items():
        (PAGES / "reference" / name).write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "docs" / "site.css", PAGES / "site.css")


if __name__ == "__main__":
    assemble()
    sys.exit(
        subprocess.run(
            [sys.executable, "-m", "zensical", *(sys.argv[1:] or ["build", "--strict"])], cwd=ROOT
        ).returncode
    )
