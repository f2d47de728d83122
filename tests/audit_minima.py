"""Asks for published advisories about the oldest versions that `pyproject.toml` allows.

`make audit` runs it, by pip-audit, of the runtime dependencies and of every extra. What the service
of advisories does not know it passes over in silence, and so does a mirror of the registry that
keeps no advisories: so one version with a known advisory is asked for as well, and where none is
found of that, nothing has been checked, which is said, by another exit status.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
KNOWN = ("jinja2", "2.10")  # has advisories since 2019
SERVICES = ("pypi", "osv")
CLEAN, ADVISORIES, UNCHECKED = 0, 1, 2


def minima(pyproject: dict[str, Any]) -> dict[str, set[str]]:
    """Returns the lower bounds by package, of the dependencies, every extra and the build."""
    project = pyproject["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    found: dict[str, set[str]] = {}
    for requirement in (line for group in groups for line in group):
        match = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)(?:,.*)?", requirement)
        if match is None:
            raise ValueError(f"no lower bound in {requirement!r}")
        found.setdefault(match[1], set()).add(match[2])
    return found


def rounds(found: dict[str, set[str]]) -> list[list[str]]:
    """Returns lists of requirements, with the known one in each; one version a package in each."""
    pending = {name: sorted(versions) for name, versions in found.items()}
    result = []
    while any(pending.values()):
        line = [f"{name}=={versions.pop()}" for name, versions in pending.items() if versions]
        result.append(["==".join(KNOWN), *line])
    return result


def judge(report: dict[str, Any] | None, asked: list[str]) -> tuple[int, list[str]]:
    """Returns the status and what to print of a report of pip-audit's, or of none."""
    if report is None:
        return UNCHECKED, ["it gave no answer"]
    answers = {found["name"].lower(): found for found in report["dependencies"]}
    if not answers.get(KNOWN[0], {}).get("vulns"):
        return UNCHECKED, [f"it does not know the advisories about {' '.join(KNOWN)}"]
    names = {line.split("==")[0].lower() for line in asked} - {KNOWN[0]}
    passed_over = sorted(name for name in names if "vulns" not in answers.get(name, {}))
    lines = [
        f"{name} {answers[name]['version']}: {bad['id']}, mended in "
        f"{', '.join(bad['fix_versions']) or 'no version'}"
        for name in sorted(names - set(passed_over))
        for bad in answers[name]["vulns"]
    ]
    if lines:
        return ADVISORIES, lines
    if passed_over:
        return UNCHECKED, [f"it knows nothing of {', '.join(passed_over)}"]
    return CLEAN, []


def ask(requirements: list[str], service: str) -> dict[str, Any] | None:
    """Returns pip-audit's report, or None where the service cannot be reached."""
    with tempfile.TemporaryDirectory() as folder:
        listed = pathlib.Path(folder, "requirements.txt")
        listed.write_text("\n".join(requirements), encoding="utf-8")
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(listed)]
        command += ["--no-deps", "--disable-pip", "--format", "json", "--vulnerability-service"]
        done = subprocess.run(
            [*command, service, "--progress-spinner", "off"],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        return None


def main() -> int:
    """Asks one service after the other, prints what came of it, and returns the worst status."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found = minima(tomllib.load(file))
    for service in SERVICES:
        verdicts = [judge(ask(asked, service), asked) for asked in rounds(found)]
        statuses = [status for status, _ in verdicts]
        print(f"{service}:", "; ".join(line for _, lines in verdicts for line in lines) or "asked")
        if ADVISORIES in statuses:
            print("AUDIT: raise these lower bounds in pyproject.toml.")
            return ADVISORIES
        if UNCHECKED not in statuses:
            print(f"AUDIT: no advisories about the lower bounds of {len(found)} packages.")
            return CLEAN
    print(f"AUDIT: NOT CHECKED. No service answered; {len(found)} packages are to be asked about.")
    return UNCHECKED


if __name__ == "__main__":
    sys.exit(main())
