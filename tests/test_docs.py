"""The README, and what the site's build makes of the package, the notebooks and the results."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import naqopt

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

from extensions import api, gallery, pages, studies  # noqa: E402
from extensions.links import on_site  # noqa: E402

WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
WRITTEN += [
    path
    for path in DOCS.rglob("*.md")
    if not {"_build", "api", "notebooks", "studies"} & set(path.relative_to(DOCS).parts)
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(text):
    """The targets of a text's links that are files, without what follows a `#`."""
    targets = (target.partition("#")[0] for target in LINK.findall(text))
    return {target for target in targets if target and "://" not in target}


def exists(folder, target):
    """Whether a link leads to a file, or to a page that the build makes."""
    path = (folder / target).resolve()
    if path.exists():
        return True
    name = path.name
    made = {
        DOCS / "api": set(api.all_pages()),
        DOCS / "notebooks": {"index.md"} | {x.name for x in gallery.notebooks()},
        DOCS / "results" / "studies": set(studies.all_pages()),
    }
    return name in made.get(path.parent, set())


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere_in_a_clone_and_in_the_site(path):
    text, folder = path.read_text(encoding="utf-8"), path.parent
    lost = sorted(x for x in links(text) if not (folder / x).exists())
    assert not lost
    text = on_site(text, str(folder.relative_to(ROOT)))
    lost = sorted(x for x in links(text) if not exists(folder, x))
    assert not lost


def test_what_the_build_makes_a_page_of_is_linked_as_that():
    found = on_site(
        "[a](../../benchmarks/results/levy/results.md#b) [c](../choose.md)", "docs/results"
    )
    assert found == "[a](studies/levy.md#b) [c](../choose.md)"
    found = on_site("[a](../notebooks/) [b](../naqopt/__init__.py) [c](https://d.e/f)", "docs")
    assert found == "[a](notebooks/index.md) [b](api/index.rst) [c](https://d.e/f)"


@pytest.mark.parametrize("path", gallery.notebooks(), ids=lambda path: path.stem)
def test_links_of_notebooks_lead_somewhere_in_a_clone_and_in_the_site(path):
    def lost(notebook, folder):
        cells = json.loads(notebook)["cells"]
        text = "\n".join(
            "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"
        )
        return sorted(x for x in links(text) if not exists(folder, x))

    assert not lost(path.read_text(encoding="utf-8"), path.parent)
    assert not lost(gallery.copy(path, "", "main"), DOCS / "notebooks")


def test_no_address_of_the_repository_is_invented():
    """Only who publishes knows it."""
    tracked = subprocess.run(
        ["git", "ls-files", "*.md", "*.ipynb", "*.toml", "*.cff", "*.py", "*.yaml", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    if not tracked:
        pytest.skip("no git here")
    address = "github.com/" + "naqopt"
    paths = [ROOT / name for name in tracked]
    found = [
        path for path in paths if path.exists() and address in path.read_text(encoding="utf-8")
    ]
    assert not found


def test_the_version_is_the_same_everywhere():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, day = re.search(r"^## (\S+), (\S+)$", changes, re.MULTILINE).groups()
    assert newest == naqopt.__version__
    assert f"\nversion: {newest}\ndate-released: {day}\n" in cited


def test_the_smoke_test_of_the_package_tries_every_public_name():
    text = (ROOT / "tests" / "installed_package.py").read_text(encoding="utf-8")
    assert set(naqopt.__all__) <= set(re.findall(r"naqopt\.(\w+)", text))


def test_every_public_name_has_a_page():
    made = api.all_pages()
    for name in naqopt.__all__:
        if name != "schedules":
            assert f"naqopt.{name}.rst" in made
            assert f"<naqopt.{name}>" in made["index.rst"]
    assert "naqopt.schedules.inverse_sqrt.rst" in made
    for path in (ROOT / "naqopt").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not any(part.startswith("_") and part != "__init__" for part in parts):
            module = ".".join(part for part in parts if part != "__init__")
            assert module == "naqopt" or f"modules-{module}.rst" in made


def test_a_name_of_an_unknown_module_has_a_section():
    """So that what others add is not lost."""

    def added():
        """Does something new."""

    for module in ("naqopt.optimizers.something_new", "naqopt.something_new"):
        added.__module__ = module
        index = api.index({"naqopt.added": added})
        assert "<naqopt.added>" in index
        assert "Does something new." in index


def test_every_study_with_results_has_a_page_with_its_table_and_pictures():
    made = studies.all_pages()
    for report in (ROOT / "benchmarks" / "results").glob("*/results.md"):
        page = made[f"{report.parent.name}.md"]
        table = [line for line in report.read_text(encoding="utf-8").splitlines() if "|" in line]
        assert all(line in page for line in table)
        assert all(picture.name in page for picture in report.parent.glob("*.png"))
        assert f"({report.parent.name}.md)" in made["index.md"]


def test_the_gallery_has_every_notebook():
    index = gallery.index(executed=True)
    for path in gallery.notebooks():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        title, summary = gallery.title_and_summary(notebook)
        assert title
        assert summary.endswith(".")
        assert f'href="{path.stem}.html"' in index
        assert f"thumbnails/{path.stem}.png" in index
    assert "thumbnails" not in gallery.index(executed=False)


def test_a_badge_only_where_the_address_is_known():
    path = gallery.notebooks()[0]
    assert "colab.research" not in gallery.copy(path, "", "main")
    known = gallery.copy(path, "https://github.com/somebody/somewhere", "main")
    assert f"github/somebody/somewhere/blob/main/notebooks/{path.name}" in known
    json.loads(known)
    assert "colab.research" not in gallery.copy(path, "https://example.org/somewhere", "main")


def test_the_last_picture_of_a_notebook():
    def cell(*kinds):
        return {"outputs": [{"data": {kind: "aGk="}} for kind in kinds]}

    last = {"outputs": [{"data": {"image/png": ["aGV5", "IQ=="]}}]}
    assert gallery.last_picture({"cells": [cell("image/png"), last, {}]}) == b"hey!"
    assert gallery.last_picture({"cells": [cell("text/plain"), {}]}) is None


def test_pages_are_rewritten_only_where_they_change(tmp_path):
    pages.write(tmp_path, {"a": "1", "b": "2"})
    before = (tmp_path / "a").stat().st_mtime_ns
    pages.write(tmp_path, {"a": "1", "c": "3"})
    assert (tmp_path / "a").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]
