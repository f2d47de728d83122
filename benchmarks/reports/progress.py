"""Progress bars."""

import sys

import tqdm


def progress_bar(name: str, total: int, done: int = 0, unit: str = "epoch") -> tqdm.tqdm:
    """Returns a bar over epochs or other units, quiet where nobody watches a terminal."""
    return tqdm.tqdm(
        total=total,
        initial=done,
        desc=name,
        unit=unit,
        dynamic_ncols=True,
        mininterval=0.1 if sys.stderr.isatty() else 5.0,
    )
