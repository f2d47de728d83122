"""The table of a section."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.reports.tables import markdown

MARKS = {True: "yes", False: "NO"}


# What some measurements have beside the usual, and the heads of its columns.
MORE = {
    "kernels": "kernels",
    "peer_kernels": "the peer's",
    "state": "state, copies",
    "formula": "the papers' formula",
    "count": "its value",
    "points": "fitted to",
    "note": "note",
}


def measurements(measured: Sequence[Mapping[str, Any]], quantity: str = "ratio") -> str:
    """Returns a table of measurements, with those columns of which there is anything to say.

    Args:
      measured: entries with `name`, `group` and `value`; optional are `target`, which the value
        shall not be above, the quartiles `low` and `high`, the times `top_ms` and `bottom_ms`, the
        number of `rounds`, and what `MORE` names.
      quantity: heads the column of the values.

    Returns:
      Markdown.
    """
    header = ["what", "where", quantity, "target", "met", "quartiles", "ms", "rounds"]
    header += MORE.values()
    rows = []
    for entry in measured:
        target = entry.get("target")
        row = [entry["name"], entry["group"], _three_digits(entry.get("value"))]
        row += [_three_digits(target), "" if target is None else MARKS[met(entry)]]
        row.append(" to ".join(_three_digits(entry[x]) for x in ("low", "high") if x in entry))
        times = [entry[side] for side in ("top_ms", "bottom_ms") if side in entry]
        row += [" / ".join(map(_three_digits, times)), _cell(entry.get("rounds"))]
        row += [_cell(entry.get(name)) for name in MORE]
        rows.append(row)
    kept = [i for i in range(len(header)) if i < 3 or any(row[i] for row in rows)]
    return markdown([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def met(entry: Mapping[str, Any]) -> bool:
    """Returns whether a measurement is not above its target, as far as the table shows digits."""
    value = entry.get("value")
    return value is not None and float(f"{value:.3g}") <= entry["target"]


def _three_digits(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _cell(value: float | str | None) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else _three_digits(value)
