"""The studies by name: what every module in this folder offers as `STUDIES`.

Each is a `Study`, or a `MiniBatchStudy`, which has the same attributes and more.
"""

import importlib
import pkgutil
from collections.abc import Iterator

from benchmarks.training.mini_batch_study import MiniBatchStudy
from benchmarks.training.study import Study


def _offered() -> Iterator[Study | MiniBatchStudy]:
    for module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
        yield from importlib.import_module(module.name).STUDIES


STUDIES: dict[str, Study | MiniBatchStudy] = {study.name: study for study in _offered()}
