"""The notebooks as a gallery: every file of `notebooks/`, with its last picture.

The copies differ from the files in their links alone: `../docs/` is the site itself, and where the
repository's address is known (`NAQOPT_REPOSITORY`) a badge opens the notebook in Colab.
"""

import base64
import html
import json
from pathlib import Path
from typing import Any

from extensions import pages

ROOT = Path(__file__).resolve().parents[2]
_BADGE = "[Open in Colab](https://colab.research.google.com/github/{}/blob/{}/notebooks/{})"
_ON_GITHUB = "https://github.com/"


def notebooks() -> list[Path]:
    """Returns the notebooks."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def title_and_summary(notebook: dict[str, Any]) -> tuple[str, str]:
    """Returns the first heading and the first sentence behind it."""
    text = "".join(notebook["cells"][0]["source"])
    heading, _, rest = text.partition("\n")
    paragraphs = [p.replace("\n", " ").strip() for p in rest.split("\n\n")]
    first = next((p for p in paragraphs if p and not p.startswith("[![")), "")
    return heading.lstrip("# "), first.partition(". ")[0].rstrip(".:") + "."


def copy(path: Path, repository: str, branch: str) -> str:
    """Returns a notebook's text with the links of the site."""
    text = path.read_text(encoding="utf-8").replace("](../docs/", "](../")
    if not repository.startswith(_ON_GITHUB):
        return text
    notebook = json.loads(text)
    badge = _BADGE.format(repository.removeprefix(_ON_GITHUB), branch, path.name)
    first = notebook["cells"][0]["source"]
    notebook["cells"][0]["source"] = [first[0].rstrip("\n") + "\n", "\n", f"{badge}\n", *first[1:]]
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def _plain(markdown: str) -> str:
    """Returns a sentence as HTML, its code marked and its links without their targets."""
    pieces = html.escape(markdown, quote=False).split("`")
    text = "".join(f"<code>{x}</code>" if i % 2 else x for i, x in enumerate(pieces))
    while "](" in text:
        before, _, behind = text.partition("](")
        text = "".join(before.rpartition("[")[::2]) + behind.partition(")")[2]
    return text.replace("**", "").replace("$", "")


def index(executed: bool) -> str:
    """Returns the page of cards, with pictures where the notebooks are executed."""
    cards = []
    for path in notebooks():
        title, summary = title_and_summary(json.loads(path.read_text(encoding="utf-8")))
        source = f'src="../_static/thumbnails/{path.stem}.png"'
        picture = f'<img {source} alt="" loading="lazy" onerror="this.remove()">'
        cards.append(
            f'<a class="card" href="{path.stem}.html">{picture if executed else ""}'
            f"<span><strong>{_plain(title)}</strong><br>{_plain(summary)}</span></a>"
        )
    names = "\n".join(path.stem for path in notebooks())
    how = (
        "Executed as this site was built, in their small form (`NAQOPT_QUICK=1`)."
        if executed
        else "Not executed in this build of the site."
    )
    return (
        "# Notebooks\n\n"
        f"{how} They lie in `notebooks/` of a clone, and say there what they need.\n\n"
        "```{raw} html\n"
        f'<div class="cards">\n{"".join(cards)}\n</div>\n```\n\n'
        f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def _generate(app: Any, config: Any) -> None:
    repository = config.html_theme_options.get("source_repository", "").rstrip("/")
    branch = config.html_theme_options.get("source_branch", "main")
    copies = {path.name: copy(path, repository, branch) for path in notebooks()}
    executed = config.nb_execution_mode != "off"
    pages.write(Path(app.srcdir) / "notebooks", {"index.md": index(executed)} | copies)


def last_picture(notebook: dict[str, Any]) -> bytes | None:
    """Returns the PNG that an executed notebook shows last."""
    found = [
        output["data"]["image/png"]
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    return base64.b64decode("".join(found[-1])) if found else None


def _draw_thumbnails(app: Any, exception: Exception | None) -> None:
    """Puts the last picture of every executed notebook beside the gallery."""
    if exception or app.builder.format != "html" or app.config.nb_execution_mode == "off":
        return
    folder = Path(app.outdir) / "_static" / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    executed = Path(app.outdir).parent / "jupyter_execute" / "notebooks"
    for path in notebooks():
        text = (executed / path.name).read_text(encoding="utf-8")
        picture = last_picture(json.loads(text))
        if picture:
            (folder / f"{path.stem}.png").write_bytes(picture)


def setup(app: Any) -> dict[str, bool]:
    """Registers the copies and the thumbnails."""
    app.connect("config-inited", _generate)
    app.connect("build-finished", _draw_thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
