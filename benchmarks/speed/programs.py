"""What a compiled program consists of, by its text."""

import re

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?^\}", re.MULTILINE | re.DOTALL)
_OPERATION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*? ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_POINTING = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
_CONTROL = {"call", "while", "conditional"}  # what they run is counted where it stands


def kernels(text: str) -> int:
    """Returns how many kernels a program has.

    They are the fusions, and the operations that are part of none: each is launched on its own and
    compiled on its own, unless it is a copy or left to a library. What is in a fusion, or what a
    reduction adds up by, is part of it.

    Args:
      text: of the optimized HLO.

    Returns:
      The number.
    """
    within = set()
    for name, rest in _OPERATION.findall(text):
        if name != "call":
            within.update(_CALLED.findall(rest))
    return sum(
        name not in _POINTING | _CONTROL
        for computation in _COMPUTATION.finditer(text)
        if computation[1] not in within
        for name, _ in _OPERATION.findall(computation[0])
    )
