"""Links of the sources lead to files of a clone, on the site to what the build makes of these."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")
# From a file of the repository to what the build makes of it.
_PAGES = {
    r"benchmarks/results/([\w-]+)/results\.md": r"docs/results/studies/\1.md",
    r"benchmarks/results": "docs/results/studies/index.md",
    r"notebooks/(\w+)\.ipynb": r"docs/notebooks/\1.ipynb",
    r"notebooks": "docs/notebooks/index.md",
    r"naqopt/__init__\.py": "docs/api/index.rst",
}


def on_site(text: str, folder: str) -> str:
    """Returns a page's text with the links of the site.

    Args:
      text: of the source.
      folder: in which it lies, from the repository's root.
    """

    def replaced(link: re.Match[str]) -> str:
        target, anchor = link[1], link[2] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        for pattern, page in _PAGES.items():
            if found := re.fullmatch(pattern, path):
                return f"]({posixpath.relpath(found.expand(page), folder)}{anchor})"
        return link[0]

    return _LINK.sub(replaced, text)


def _rewrite(app: Any, name: str, source: list[str]) -> None:
    del app
    source[0] = on_site(source[0], posixpath.dirname(f"docs/{name}"))


def setup(app: Any) -> dict[str, bool]:
    """Registers the rewriting."""
    app.connect("source-read", _rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
