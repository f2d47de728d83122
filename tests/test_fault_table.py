"""No run is lost to a fault, whatever it is and wherever: see `fault_injection`, which trains them.

What is not finite is noticed, or is not looked at. What is finite and false, a method can only take
for true: a loss of 0 or 1e30, a gradient of 0. It recovers from that too, but for one run of MoSR1,
with a gradient of 0 on the first step, where rounding decides. aSNAQ's steps have a constant
length, so that its undisturbed runs differ: what is 10 % above the largest of those with one step
left out counts as not recovered (of 480 runs 469 end 10 % above the undisturbed one itself or
lower).
"""

import re
from pathlib import Path

import numpy as np
import pytest
from fault_injection import (
    FINITE_FAULTS,
    KINDS,
    METHODS,
    PLACES,
    on_all_data,
    outcome,
    summary,
    table_row,
)
from optimizer_table import each

GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "diagnostics.md"
EACH_METHOD = each(METHODS, quick=())


@EACH_METHOD
def test_no_run_is_lost_and_all_recover(row):
    found = outcome(row)
    assert np.all(found.finite)
    not_finite = np.isin(found.kind, ["NaN", "Inf"])
    assert np.all((found.counted | found.ignored)[not_finite])
    # Each place is met: what was put there had an effect that a counter shows.
    for place in set(found.place):
        assert np.any(found.counted[not_finite & (found.place == place)])
    for kind, (runs, _, _, recovered) in summary(row).items():
        assert runs >= 32
        if kind != "denormal":  # which is of no other effect than 0
            by_rounding = row.name == "mosr1" and kind in FINITE_FAULTS
            every = on_all_data(row) and not by_rounding
            assert recovered >= (1.0 if every else 0.95) * runs, kind


@EACH_METHOD
def test_the_guide_has_its_line(row):
    """Made by `python tests/fault_injection.py`; rounding may move what only just recovers."""
    (written,) = [x for x in GUIDE.read_text("utf-8").splitlines() if f"| `{row.name}` |" in x]
    given, found = (
        np.array(re.findall(r"\d+", x.split("|", 2)[2])) for x in (written, table_row(row))
    )
    np.testing.assert_allclose(given.astype(int), found.astype(int), atol=2)


@pytest.mark.slow
def test_there_are_enough_of_them():
    guide = GUIDE.read_text("utf-8")
    lines = [x.split("|") for x in guide.splitlines() if re.match(r"\| `\w+` \| \d+ \|", x)]
    assert [x[1].strip(" `") for x in lines] == [row.name for row in METHODS]
    assert sum(int(x[2]) for x in lines) >= 5000
    assert len(KINDS) * len(PLACES) == 30
