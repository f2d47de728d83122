"""The studies by name: what every module in this folder offers as `STUDIES`."""

import importlib
import pkgutil
from collections.abc import Iterator

from benchmarks.training.study import Study


def _offered() -> Iterator[Study]:
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        yield from importlib.import_module(module.name).STUDIES


STUDIES: dict[str, Study] = {study.name: study for study in _offered()}
