"""`make audit` says what is wrong, and says so where it could not look."""

import tomllib

import pytest
from audit_minima import ADVISORIES, CLEAN, KNOWN, ROOT, UNCHECKED, judge, minima, rounds

FOUND = [{"id": "PYSEC-1", "fix_versions": ["2.0"]}]


def answer(name, version, vulns=()):
    return {"name": name, "version": version, "vulns": list(vulns)}


CANARY = answer(*KNOWN, FOUND)
ASKED = ["==".join(KNOWN), "jax==0.7.0", "optax==0.2.6"]


def test_every_dependency_has_a_lower_bound_that_is_asked_about():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = minima(pyproject)
    assert {"jax", "optax", "pillow", "pytest", "sphinx", "pip-audit"} <= set(found)
    asked = rounds(found)
    assert all(line[0] == "==".join(KNOWN) for line in asked)
    assert sum(len(line) - 1 for line in asked) == sum(len(x) for x in found.values())
    with pytest.raises(ValueError, match="no lower bound in 'jax'"):
        minima({"project": {"dependencies": ["jax"], "optional-dependencies": {}}})


def test_two_bounds_of_a_package_are_asked_about_one_after_the_other():
    groups = {"a": ["jax>=0.7"], "b": ["jax>=0.8", "optax[x]>=0.2,<1"]}
    found = minima({"project": {"dependencies": [], "optional-dependencies": groups}})
    assert [line[1:] for line in rounds(found)] == [["jax==0.8", "optax==0.2"], ["jax==0.7"]]


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([CANARY, answer("jax", "0.7.0"), answer("optax", "0.2.6")], CLEAN, ""),
        (
            [CANARY, answer("jax", "0.7.0", FOUND), answer("optax", "0.2.6")],
            ADVISORIES,
            "jax 0.7.0: PYSEC-1, mended in 2.0",
        ),
        (
            [CANARY, answer("jax", "0.7.0"), {"name": "optax", "skip_reason": "not found"}],
            UNCHECKED,
            "it knows nothing of optax",
        ),
        # A mirror without advisories: no package has any, and some are not found.
        (
            [answer(*KNOWN), answer("jax", "0.7.0"), answer("optax", "0.2.6")],
            UNCHECKED,
            "it does not know the advisories about jinja2 2.10",
        ),
        (None, UNCHECKED, "it gave no answer"),
    ],
    ids=["clean", "advisory", "passed over", "mirror", "none"],
)
def test_what_is_made_of_a_report(dependencies, status, said):
    report = None if dependencies is None else {"dependencies": dependencies}
    found, lines = judge(report, ASKED)
    assert found == status
    assert lines == ([said] if said else [])
