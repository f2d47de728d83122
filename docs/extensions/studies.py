"""A page for every study that has results: its table and pictures, and the command."""

import inspect
import textwrap
from pathlib import Path
from typing import Any

from benchmarks.studies import STUDIES
from benchmarks.training.study import RESULTS
from extensions import pages

_NO_STUDY = {
    "speed": "Speed of the optimizers.",
    "distributed": "Two processes train as one does, and a checkpoint on other devices.",
}


def _description(name: str) -> str:
    """Returns what a study's docstring says."""
    study = STUDIES.get(name)
    if study is None:
        return _NO_STUDY.get(name, "")
    build = getattr(study, "build", None)
    text = getattr(study, "description", None) or getattr(build, "func", build).__doc__ or ""
    first, _, rest = inspect.cleandoc(text).partition("\n")
    rest = rest.partition("\nArgs:")[0].partition("\nReturns:")[0]
    return textwrap.dedent(f"{first}\n{rest}").strip()


def _page(folder: Path) -> str:
    """Returns a study's page."""
    lines = (folder / "results.md").read_text(encoding="utf-8").splitlines()
    heading, table = lines[0], "\n".join(lines[1:]).strip()
    name = folder.name
    command = f"python -m benchmarks {name if name in _NO_STUDY else f'run {name}'}"
    # reStructuredText's `code` and lists are Markdown's too; formulas of docstrings are not.
    parts = [heading, _description(name).replace("``", "`"), f"```bash\n{command}\n```"]
    parts += [
        f"```{{image}} ../../../benchmarks/results/{name}/{picture.name}\n"
        f":alt: {name}: {picture.stem}\n:class: study\n```"
        for picture in sorted(folder.glob("*.png"))
    ]
    return "\n\n".join(part for part in [*parts, table] if part) + "\n"


def _index(names: list[str]) -> str:
    rows = []
    for name in names:
        description = _description(name)
        summary = description.partition("\n")[0].replace("|", "\\|")
        rows.append(f"| [`{name}`]({name}.md) | {summary} |")
    table = "\n".join(["| study | what it is |", "|---|---|", *rows])
    toctree = "\n".join(
        ["```{toctree}", ":hidden:", "", *(f"{name} <{name}>" for name in names), "```"]
    )
    text = (
        "Each page is the table and the picture that its command has written, as they lie in\n"
        "`benchmarks/results` beside a JSON file of every run.\n"
    )
    return f"# Every study\n\n{text}\n{table}\n\n{toctree}\n"


def all_pages() -> dict[str, str]:
    """Returns the pages by file name."""
    folders = sorted(path.parent for path in RESULTS.glob("*/results.md"))
    found = {f"{folder.name}.md": _page(folder) for folder in folders}
    return {"index.md": _index([folder.name for folder in folders])} | found


def _generate(app: Any, config: Any) -> None:
    del config
    pages.write(Path(app.srcdir) / "results" / "studies", all_pages())


def setup(app: Any) -> dict[str, bool]:
    """Registers the generation."""
    app.connect("config-inited", _generate)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
