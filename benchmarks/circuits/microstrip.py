r"""Microstrip lines in a row: a stepped-impedance low-pass filter.

A strip of width :math:`w` on a substrate of height :math:`h` and permittivity
:math:`\varepsilon_r` above a ground plane is a transmission line. With :math:`u = w/h`
(Hammerstad and Jensen, *Accurate Models for Microstrip Computer-Aided Design*, IEEE MTT-S 1980)

.. math::
  F &= 6 + (2\pi - 6)\, e^{-(30.666/u)^{0.7528}}, \qquad
  Z_{01} = \frac{\eta_0}{2\pi} \ln\!\left(\frac{F}{u} + \sqrt{1 + (2/u)^2}\right), \\
  a &= 1 + \tfrac{1}{49} \ln \frac{u^4 + (u/52)^2}{u^4 + 0.432}
      + \tfrac{1}{18.7} \ln\!\left(1 + (u/18.1)^3\right), \qquad
  b = 0.564 \left(\frac{\varepsilon_r - 0.9}{\varepsilon_r + 3}\right)^{0.053}, \\
  \varepsilon_e &= \frac{\varepsilon_r + 1}{2}
      + \frac{\varepsilon_r - 1}{2} \left(1 + \frac{10}{u}\right)^{-ab}, \qquad
  Z_0 = Z_{01} / \sqrt{\varepsilon_e}.

Left out: losses, the thickness of the strip, dispersion (a few percent of
:math:`\varepsilon_e` at 4.5 GHz), and the stray fields of the steps.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import constants

IMPEDANCE_OF_FREE_SPACE = np.sqrt(constants.mu_0 / constants.epsilon_0)


class Substrate(NamedTuple):
    """What the strips lie on.

    Attributes:
      permittivity: εr, relative.
      height: h, in metres.
    """

    permittivity: float
    height: float


class Line(NamedTuple):
    """A strip of one width.

    Attributes:
      width: w, in metres.
      length: in metres, a number or one for each point.
    """

    width: float
    length: float | np.ndarray


def characteristic(width: float, substrate: Substrate) -> tuple[float, float]:
    """Returns the impedance Z0 of a line, in ohms, and its effective permittivity εe.

    Example:
      >>> from benchmarks.circuits.microstrip import Substrate, characteristic
      >>> impedance, permittivity = characteristic(11.3e-3, Substrate(4.2, 1.58e-3))
      >>> print(f"{impedance:.2f} ohms, {permittivity:.2f}")
      19.95 ohms, 3.60
    """
    u, epsilon = width / substrate.height, substrate.permittivity
    factor = 6 + (2 * np.pi - 6) * np.exp(-((30.666 / u) ** 0.7528))
    in_air = IMPEDANCE_OF_FREE_SPACE / (2 * np.pi)
    in_air *= np.log(factor / u + np.sqrt(1 + (2 / u) ** 2))
    a = 1 + np.log((u**4 + (u / 52) ** 2) / (u**4 + 0.432)) / 49
    a += np.log(1 + (u / 18.1) ** 3) / 18.7
    b = 0.564 * ((epsilon - 0.9) / (epsilon + 3)) ** 0.053
    effective = (epsilon + 1) / 2 + (epsilon - 1) / 2 * (1 + 10 / u) ** (-a * b)
    return in_air / np.sqrt(effective), effective


def chain_matrix(line: Line, substrate: Substrate, frequency: np.ndarray) -> np.ndarray:
    """Returns [[A, B], [C, D]] = [[cos θ, j Z0 sin θ], [j sin θ / Z0, cos θ]] of a line.

    Args:
      line: of the electrical length θ = 2π f √εe ℓ / c.
      substrate: what it lies on.
      frequency: f, in hertz, (points,).

    Returns:
      (points, 2, 2).
    """
    impedance, effective = characteristic(line.width, substrate)
    theta = 2 * np.pi * frequency * np.sqrt(effective) * line.length / constants.c
    cosine, sine = np.cos(theta), np.sin(theta)
    rows = ((cosine, 1j * impedance * sine), (1j * sine / impedance, cosine))
    return np.moveaxis(np.array(rows), -1, 0)


def scattering(
    lines: Sequence[Line], substrate: Substrate, frequency: np.ndarray, ports: float = 50.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns S11 and S21 of lines in a row.

    Their matrices are multiplied, and with the impedance Z of both ports (Pozar, *Microwave
    Engineering*, table 4.2) S11 = (A + B/Z − CZ − D) / Δ, S21 = 2 / Δ, Δ = A + B/Z + CZ + D.

    Args:
      lines: from the first port to the second.
      substrate: what they lie on.
      frequency: in hertz, (points,).
      ports: Z, in ohms.

    Returns:
      Two complex arrays, (points,).
    """
    matrices = (chain_matrix(line, substrate, frequency) for line in lines)
    (a, b), (c, d) = np.moveaxis(functools.reduce(np.matmul, matrices), 0, -1)
    delta = a + b / ports + c * ports + d
    return (a + b / ports - c * ports - d) / delta, 2 / delta


# The substrate and the widths of Pozar's stepped-impedance filter (example 8.6): 20 and 120 ohms.
SUBSTRATE = Substrate(permittivity=4.2, height=1.58e-3)
WIDE, NARROW = 11.3e-3, 0.428e-3


def low_pass(inputs: np.ndarray) -> np.ndarray:
    """Returns |S11| and |S21| of a filter of five lines, wide and narrow ones in turn.

    The wide ones are 5, 10 and 5 mm long, the narrow ones both D.

    Args:
      inputs: D in millimetres and f in gigahertz, (points, 2).

    Returns:
      (points, 2).
    """
    length, frequency = 1e-3 * inputs[:, 0], 1e9 * inputs[:, 1]
    end, middle, narrow = Line(WIDE, 5e-3), Line(WIDE, 10e-3), Line(NARROW, length)
    found = scattering([end, narrow, middle, narrow, end], SUBSTRATE, frequency)
    return np.abs(np.stack(found, axis=1))
