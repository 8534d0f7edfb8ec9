"""A hook of mkdocs: add the pages that are made from the code, and those that are files of the repository.

Generated pages are never written into the source tree. Links from a page to a file of the repository become links to
the repository's address, so that they work both here and where the Markdown file itself is read.
"""

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from docs.reference_pages import COPIES, PAGES  # noqa: E402  after the path

_LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    for name, make in PAGES.items():
        if stand_in := files.get_file_from_path(name):  # read where the documentation is not built
            files.remove(stand_in)
        files.append(File.generated(config, name, content=make()))
    for name, source in COPIES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links at files of the repository to its address."""
    name = page.file.src_uri
    at = posixpath.dirname(COPIES.get(name, f"docs/{name}"))
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files} | {path: page for page, path in COPIES.items()}

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(at, match[2]))
        if path in pages:
            return f"{match[1]}{posixpath.relpath(pages[path], posixpath.dirname(name) or '.')}{match[3]}"
        if not (ROOT / path).exists():
            return match[0]  # mkdocs reports it
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{match[1]}{config.extra['repository']}/{kind}/main/{path}{match[3]}"

    return _LINK.sub(target, markdown)
