"""`python -m benchmarks run microstrip` and `op-amp`: the circuits, their data, runs and tables."""

import dataclasses
import functools
import json
import operator

import numpy as np
import optax
import pytest
import skrf
from click.testing import CliRunner
from PIL import Image
from scipy import constants

from benchmarks.circuits import microstrip, op_amp
from benchmarks.circuits.microstrip import Line, Substrate
from benchmarks.circuits.op_amp import Process, Specification
from benchmarks.cli import main
from benchmarks.models import function_fit
from benchmarks.reports import fits as report
from benchmarks.studies import STUDIES
from benchmarks.studies import microstrip as microstrip_study
from benchmarks.studies import op_amp as op_amp_study
from benchmarks.training import fits
from benchmarks.training.fit import Method
from benchmarks.training.fit_runs import Runner


def scikit_rf_line(substrate, width, frequency):
    """Returns its microstrip line by Hammerstad and Jensen's quasi-static formulas, lossless."""
    options = {"model": "hammerstadjensen", "disp": "none", "diel": "frequencyinvariant"}
    band = skrf.Frequency.from_f(frequency, unit="hz")
    h, epsilon = substrate.height, substrate.permittivity
    return skrf.media.MLine(band, z0_port=50, w=width, h=h, ep_r=epsilon, rho=None, **options)


@pytest.mark.parametrize("permittivity", [1.1, 2.2, 4.2, 9.8])
@pytest.mark.parametrize("ratio", [0.1, 0.9, 1.1, 7.0])
def test_lines_are_those_of_scikit_rf(ratio, permittivity):
    substrate = Substrate(permittivity, 1.27e-3)
    width = ratio * substrate.height
    line = scikit_rf_line(substrate, width, [1e9])
    expected = (line.z0_characteristic[0].real, line.ep_reff_f[0].real)
    found = microstrip.characteristic(width, substrate)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_lines_in_a_row_are_those_of_scikit_rf():
    """Its cascade multiplies scattering matrices, and ours chain matrices."""
    substrate = Substrate(9.3, 1e-3)
    frequency = np.linspace(0.1e9, 4.5e9, 50)
    lines = [Line(4e-3, 6e-3), Line(0.2e-3, 15e-3), Line(2e-3, 3e-3)]
    sections = (
        scikit_rf_line(substrate, line.width, frequency).line(line.length, unit="m")
        for line in lines
    )
    network = functools.reduce(operator.pow, sections)  # ** is its cascade
    s11, s21 = microstrip.scattering(lines, substrate, frequency)
    np.testing.assert_allclose(s11, network.s[:, 0, 0], atol=1e-6)
    np.testing.assert_allclose(s21, network.s[:, 1, 0], atol=1e-6)


def test_filter_of_a_textbook():
    """Pozar, Microwave Engineering, 4th edition, example 8.6: 2.5 GHz, 20 dB at 4 GHz.

    The book's lines are 20 and 120 ohms by the electrical lengths that it prints.
    """
    millimetres = (2.05, 6.63, 7.69, 9.04, 5.63, 2.41)
    degrees = (11.8, 33.8, 44.3, 46.1, 32.4, 12.3)
    widths = (microstrip.WIDE, microstrip.NARROW) * 3
    for width, length, angle in zip(widths, millimetres, degrees, strict=True):
        impedance, effective = microstrip.characteristic(width, microstrip.SUBSTRATE)
        expected = 20 if width == microstrip.WIDE else 120
        assert impedance == pytest.approx(expected, rel=0.02)
        turned = 360 * 2.5e9 * np.sqrt(effective) * 1e-3 * length / constants.c
        assert turned == pytest.approx(angle, rel=0.02)
    lines = [Line(width, 1e-3 * x) for width, x in zip(widths, millimetres, strict=True)]
    frequency = np.array([0.5e9, 2e9, 2.5e9, 4e9])
    _, s21 = microstrip.scattering(lines, microstrip.SUBSTRATE, frequency)
    passed = 20 * np.log10(abs(s21))
    assert passed[0] > -0.2
    assert passed[1] > -1
    assert -6 < passed[2] < -2
    assert passed[3] < -20


def test_filter_loses_no_power_and_passes_what_is_slow():
    inputs = microstrip_study.FIT.task.train_inputs
    s11, s21 = microstrip.low_pass(inputs).T
    np.testing.assert_allclose(s11**2 + s21**2, 1, rtol=1e-12)
    frequency = inputs[:, 1]
    assert s21[frequency == frequency.min()].min() > 0.99
    assert s21[(frequency > 2.5) & (frequency < 3.5)].max() < 0.2
    np.testing.assert_allclose(microstrip.low_pass(np.array([[15.0, 0.0]])), [[0, 1]], atol=1e-12)


def test_microstrip_has_the_papers_sizes():
    task = microstrip_study.FIT.task
    assert task.parameters == optax.tree.size(task.start(0)) == 227
    assert len(task.train_inputs) == 1105
    assert len(task.test_inputs) == 884
    assert len(np.unique(task.train_inputs, axis=0)) == 1105
    assert set(task.train_inputs[:, 0]) == {12, 14, 16, 18, 20}
    assert set(task.test_inputs[:, 0]) == {13, 15, 17, 19}
    for x in (task.train_inputs, task.test_inputs):
        assert x[:, 1].min() == 0.1
        assert x[:, 1].max() == 4.5


BOOK = Process(transconductance_n=110e-6, transconductance_p=50e-6)


def test_design_of_a_textbook():
    """Allen and Holberg, 2nd edition, example 6.3-1, which takes L = 1 µm and Cc = 3 pF.

    The book rounds (W/L)1 up to 3 before it goes on to (W/L)5 = 4.49.
    """
    gain = 20 * np.log10(7697)
    wanted = Specification(5e6, gain, 60.0, 10e6, 10e-12)
    assert op_amp.compensation_of(wanted) == pytest.approx(2.2e-12, rel=0.01)
    sizes = op_amp.design(wanted, BOOK, compensation=3e-12)
    assert sizes.current == pytest.approx(30e-6)
    assert sizes.length == pytest.approx(1e-6, rel=0.01)
    s1, s3, s5, s6, s7 = np.array(sizes[:5]) / sizes.length

    def tail(s1):
        return 2 * 30 / (110 * (-1 + 2.5 - np.sqrt(30 / (110 * s1)) - 0.85) ** 2)

    assert s1 == pytest.approx(94.25**2 / (110 * 30), rel=1e-3)
    assert s3 == pytest.approx(15)
    assert tail(3) == pytest.approx(4.49, rel=1e-3)
    assert s5 == pytest.approx(tail(s1))
    assert s6 == pytest.approx(94.25, rel=1e-3)
    assert s7 / s5 == pytest.approx(94.5 / 30, rel=3e-3)


def test_designs_do_what_was_specified():
    inputs = op_amp.specifications(seed=7, count=200)
    wanted = Specification(*(inputs * [1e6, 1, 1, 1e6, 1e-12]).T)
    sizes = op_amp.Sizes(*(op_amp.sizes(inputs) / ([1e6] * 6 + [1e12, 1e6])).T)
    for found, expected in zip(
        op_amp.analyse(sizes, wanted.load, op_amp.PROCESS), wanted, strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    # The slides' targets, and what a process can make.
    assert wanted.bandwidth.min() > 1e6
    assert wanted.gain.min() > 50
    assert wanted.phase_margin.min() >= 60
    assert np.min(sizes[:5]) > 0.4e-6
    assert sizes.length.min() > 0.4e-6
    assert sizes.width_6.max() < 3e-3


def test_specifications_fill_the_box_and_differ_by_seed():
    train, test = op_amp_study.FIT.task.train_inputs, op_amp_study.FIT.task.test_inputs
    for inputs in (train, test):
        for column, (low, high) in zip(inputs.T, op_amp.BOX, strict=True):
            assert low <= column.min() < column.max() <= high
    assert not np.isin(train, test).any()
    assert op_amp_study.FIT.task.parameters == 288


@pytest.mark.parametrize("study", [microstrip_study, op_amp_study])
def test_targets_are_scaled_output_by_output(study, x64):
    task = study.FIT.task
    train, test = task.train(), task.test()
    outputs = task.function(task.train_inputs).shape[1]
    assert train.targets.shape == (len(task.train_inputs), outputs)
    np.testing.assert_allclose(train.targets.min(axis=0), -1, atol=1e-12)
    np.testing.assert_allclose(train.targets.max(axis=0), 1, atol=1e-12)
    assert abs(train.inputs).max() <= 1 + 1e-12
    # Both sets have one scale: what the network answers is in the function's units again.
    params = task.start(0)
    answers = task.answers(params, task.test_inputs)
    values = task.function(task.test_inputs)
    ratio = (answers - values) / (function_fit.output(params, test.inputs) - test.targets)
    low, high = (f(task.function(task.train_inputs), axis=0) for f in (np.min, np.max))
    np.testing.assert_allclose(ratio, np.broadcast_to((high - low) / 2, ratio.shape), rtol=1e-6)


def test_error_sums_over_the_outputs(x64):
    task = op_amp_study.FIT.task
    params, given = task.start(3), task.train()
    total = 0.0
    for x, t in zip(given.inputs[:9], given.targets[:9], strict=True):
        hidden = 1 / (1 + np.exp(-(x @ params.input_kernel + params.hidden_bias)))
        y = hidden @ params.output_kernel + params.output_bias
        total += 0.5 * sum((y[i] - t[i]) ** 2 for i in range(8))
    first = function_fit.Points(given.inputs[:9], given.targets[:9])
    np.testing.assert_allclose(function_fit.error(params, first), total / 9, rtol=1e-12)


def test_iterations_to_the_target_are_counted_and_the_run_goes_on():
    task, descent = op_amp_study.FIT.task, Method("gradient descent", optax.sgd, first_order=True)
    descent = dataclasses.replace(descent, ours=False)
    plain = Runner(task, descent, 1e-6, 30).run(0, 0.1)
    errors = dict(zip(*plain["curve"].values(), strict=True))
    assert "to_target" not in plain
    # Of descent at this rate every error is below those before it.
    target = (errors[5] + errors[6]) / 2
    found = Runner(task, descent, 1e-6, 30, target).run(0, 0.1)
    assert found["to_target"] == 6
    assert found["iterations"] == 30
    assert found["train_error"] == plain["train_error"]
    assert Runner(task, descent, 1e-6, 30, 1e-9).run(0, 0.1)["to_target"] is None


def test_table_has_the_slides_figures_as_those_of_other_data():
    runs = [
        {
            "train_error": error,
            "test_error": 2 * error,
            "iterations": 200,
            "to_target": to_target,
            "seconds": 0.5,
            "status": "all iterations",
        }
        for error, to_target in ((0.001, 50), (0.002, 70), (0.012, None))
    ]
    shown = {
        name: {"learning_rate": rate, "runs": runs}
        for name, rate in (("adam", 0.1), ("amnaq", None))
    }
    header, _, first, second = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.table(op_amp_study.FIT, shown).splitlines()
    )
    assert header.count("slides', other data") == 4
    assert header[8] == "iterations to E ≤ 0.01"
    assert first[3:] == [
        *("5 / 1 / 12", "11.8 / 11.3 / 16.4", "2", "10 / 2 / 24", "13.6 / 13.1 / 17.9"),
        *("107", "200", "2", "", "0.5"),
    ]
    assert second[8:] == ["107", "146", "2", "96.7 %", "0.5"]


@pytest.mark.parametrize(
    ("study", "averages"),
    [
        (microstrip_study, {26.6, 2.99, 4.63, 1.04, 0.93, 1.02, 1.00, 1.24}),
        (op_amp_study, {66.402, 35.102, 11.777, 11.354, 10.010, 10.005, 9.966, 10.305, 9.997}),
    ],
)
def test_every_line_of_the_slides_is_there(study, averages):
    methods = study.FIT.methods
    assert {x.published.train.average for x in methods.values() if x.published} == averages
    drawn = {name for names in study.FIT.panels.values() for name in names}
    assert drawn <= methods.keys() & report._COLOURS.keys()
    assert all(methods[name].first_order for name in methods if name.endswith("-customary"))
    assert not any(methods[name].tuned for name in study.FIT.quick_methods)


@pytest.mark.parametrize(
    ("name", "study", "panel_of_time"),
    [("microstrip", microstrip_study, False), ("op-amp", op_amp_study, True)],
)
def test_quick_form_writes_its_files(name, study, panel_of_time, monkeypatch, tmp_path):
    quick = {"quick_iterations": 12, "quick_runs": 2}
    quick["quick_methods"] = ("adam-customary", "mnaq-0.85")
    small = dataclasses.replace(study.FIT, **quick)
    monkeypatch.setitem(STUDIES, name, fits.study(name, None, small))
    arguments = ["run", name, "--quick", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    folder = tmp_path / name
    content = json.loads((folder / f"{name}.json").read_text())
    assert ("target_error" in content["settings"]) == panel_of_time
    for entry in content["methods"].values():
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        # The network of the better run alone is kept, for the picture.
        with_params, without = sorted(entry["runs"], key=lambda run: run["train_error"])
        assert "params" in with_params
        assert "params" not in without
        assert ("to_target" in without) == panel_of_time
    table = (folder / "results.md").read_text()
    assert "not reproduced" in table
    assert "slides', other data" in table
    with Image.open(folder / f"{name}.png") as image:
        image.load()
        assert image.width > 1000
    assert CliRunner().invoke(main, arguments).output.count("already run, reused") == 2
