"""What a compiled program consists of, by its text."""

import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^\}", re.MULTILINE | re.DOTALL)
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
# These hand on or point to what others have made.
_NO_KERNELS = (
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
    | {"call", "while", "conditional", "after-all", "partition-id"}
)  # fmt: skip


def kernels(text: str) -> int:
    """Returns how many kernels a program has.

    Each operation that is not part of a fusion is one, and each fusion: it is compiled on its own
    and launched on its own. What is in a fusion, or what a reduction adds up by, is part of it.

    Args:
      text: of the optimized HLO.

    Returns:
      The number.
    """
    within = {called for name, rest in _operations(text) if name != "call" for called in
              _CALLED.findall(rest)}  # fmt: skip
    return sum(
        name not in _NO_KERNELS
        for computation in _COMPUTATION.finditer(text)
        if computation[1] not in within
        for name, _ in _operations(computation[0])
    )


def _operations(text: str) -> Iterator[tuple[str, str]]:
    for found in _OPERATION.finditer(text):
        yield found[1], found[2]
