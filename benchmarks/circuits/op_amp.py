r"""A two-stage operational amplifier with Miller compensation, designed by square-law equations.

The circuit and the steps are Allen and Holberg's (*CMOS Analog Circuit Design*, 2nd edition,
section 6.3): a differential pair M1, M2 of n-channel transistors with the mirror M3, M4 as its
load and the current :math:`I_5` of M5, then M6, a p-channel transistor, with the current
:math:`I_6` that M7 takes, and a capacitor :math:`C_c` from its drain to its gate. M5 and M7 mirror
one bias. With :math:`S = W/L`, :math:`K' = \mu C_{ox}`, :math:`\omega = 2\pi\,GB` and a zero ten
times beyond the unity-gain bandwidth :math:`GB`:

.. math::
  \Phi &= 90° - \arctan\frac{\omega}{p_2} - \arctan\frac{\omega}{z}, \quad
      z = g_{m6}/C_c = 10\,\omega, \quad p_2 = g_{m6}/C_L
      \;\Rightarrow\; C_c = \frac{C_L}{10 \tan(90° - \arctan 0.1 - \Phi)} \\
  I_5 &= SR \cdot C_c, \qquad g_{m1} = \omega\, C_c, \qquad S_1 = g_{m1}^2 / (K'_n I_5) \\
  S_3 &= \frac{I_5}{K'_p\,[V_{DD} - V_{in,max} - V_{T3,max} + V_{T1,min}]^2} \\
  V_{DS5} &= V_{in,min} - V_{SS} - \sqrt{I_5 / (K'_n S_1)} - V_{T1,max}, \qquad
      S_5 = 2 I_5 / (K'_n V_{DS5}^2) \\
  g_{m6} &= 10\, g_{m1}, \quad g_{m4} = \sqrt{K'_p S_3 I_5}, \quad S_6 = S_3\, g_{m6} / g_{m4},
      \quad I_6 = g_{m6}^2 / (2 K'_p S_6), \quad S_7 = S_5\, I_6 / I_5 \\
  A_0 &= \frac{2\, g_{m1} g_{m6}}{I_5 I_6\, (\lambda_n + \lambda_p)^2}, \qquad
      \lambda = \Lambda / L

The book takes :math:`L = 1` µm and looks whether the gain is enough; here the last equation gives
the one length :math:`L` of all transistors.
"""

from typing import NamedTuple

import numpy as np


class Process(NamedTuple):
    """What the transistors and their surroundings are.

    Attributes:
      transconductance_n: K'n = μn Cox, in A/V².
      transconductance_p: K'p.
      modulation_n: Λn = λn L, in m/V.
      modulation_p: Λp.
      threshold: the least and the largest |VT| of both kinds, in volts.
      supply: VDD = −VSS, in volts.
      common_mode: the least and the largest input, in volts.
    """

    transconductance_n: float
    transconductance_p: float
    modulation_n: float = 0.04e-6
    modulation_p: float = 0.05e-6
    threshold: tuple[float, float] = (0.55, 0.85)
    supply: float = 2.5
    common_mode: tuple[float, float] = (-1.0, 2.0)


class Specification(NamedTuple):
    """What an amplifier does; numbers or arrays.

    Attributes:
      bandwidth: GB, in hertz, where the gain is 1.
      gain: A0, in decibels.
      phase_margin: Φ, in degrees.
      slew_rate: SR, in V/s.
      load: CL, in farads.
    """

    bandwidth: np.ndarray
    gain: np.ndarray
    phase_margin: np.ndarray
    slew_rate: np.ndarray
    load: np.ndarray


class Sizes(NamedTuple):
    """What an amplifier is made of; numbers or arrays.

    Attributes:
      width_1: of M1 and M2, in metres.
      width_3: of M3 and M4.
      width_5: of M5.
      width_6: of M6.
      width_7: of M7.
      length: of all of them, in metres.
      compensation: Cc, in farads.
      current: I5, in amperes.
    """

    width_1: np.ndarray
    width_3: np.ndarray
    width_5: np.ndarray
    width_6: np.ndarray
    width_7: np.ndarray
    length: np.ndarray
    compensation: np.ndarray
    current: np.ndarray


def compensation_of(specification: Specification) -> np.ndarray:
    """Returns the least Cc, in farads, with which the phase margin is kept."""
    phase = np.pi / 2 - np.arctan(0.1) - np.radians(specification.phase_margin)
    return specification.load / (10 * np.tan(phase))


def design(
    specification: Specification, process: Process, compensation: np.ndarray | None = None
) -> Sizes:
    """Returns the sizes that meet a specification.

    Args:
      specification: what is wanted.
      process: what the transistors are.
      compensation: Cc, in farads; None for `compensation_of`.

    Returns:
      The sizes.
    """
    cc = compensation_of(specification) if compensation is None else compensation
    kn, kp = process.transconductance_n, process.transconductance_p
    lowest_threshold, highest_threshold = process.threshold
    lowest_input, highest_input = process.common_mode

    i5 = specification.slew_rate * cc
    gm1 = 2 * np.pi * specification.bandwidth * cc
    s1 = gm1**2 / (kn * i5)
    s3 = i5 / (kp * (process.supply - highest_input - highest_threshold + lowest_threshold) ** 2)
    vds5 = lowest_input + process.supply - np.sqrt(i5 / (kn * s1)) - highest_threshold
    s5 = 2 * i5 / (kn * vds5**2)
    gm6, gm4 = 10 * gm1, np.sqrt(kp * s3 * i5)
    s6 = s3 * gm6 / gm4
    i6 = gm6**2 / (2 * kp * s6)
    s7 = s5 * i6 / i5
    modulation = process.modulation_n + process.modulation_p
    gain = 10 ** (specification.gain / 20)
    length = modulation * np.sqrt(gain * i5 * i6 / (2 * gm1 * gm6))
    return Sizes(*(s * length for s in (s1, s3, s5, s6, s7)), length, cc, i5)


def analyse(sizes: Sizes, load: np.ndarray, process: Process) -> Specification:
    """Returns what an amplifier of these sizes does with a load CL, in farads."""
    kn, kp = process.transconductance_n, process.transconductance_p
    s1, s5, s6, s7 = (
        width / sizes.length
        for width in (sizes.width_1, sizes.width_5, sizes.width_6, sizes.width_7)
    )
    i6 = sizes.current * s7 / s5
    gm1, gm6 = np.sqrt(kn * s1 * sizes.current), np.sqrt(2 * kp * s6 * i6)
    omega = gm1 / sizes.compensation
    conductance = (process.modulation_n + process.modulation_p) / sizes.length
    gain = 2 * gm1 * gm6 / (sizes.current * i6 * conductance**2)
    lag = np.arctan(omega * load / gm6) + np.arctan(omega * sizes.compensation / gm6)
    return Specification(
        bandwidth=omega / (2 * np.pi),
        gain=20 * np.log10(gain),
        phase_margin=90 - np.degrees(lag),
        slew_rate=sizes.current / sizes.compensation,
        load=load,
    )


# The slides' K' and supply; the rest is the book's.
PROCESS = Process(transconductance_n=160e-6, transconductance_p=40e-6)

# Megahertz, decibels, degrees, volts of SR / ω (the overdrive of M1), picofarads. All lie above the
# slides' targets of 1 MHz, 50 dB and 60°. At less bandwidth, load or overdrive some transistors
# would be narrower than 0.4 µm.
RANGES = ((5.0, 15.0), (75.0, 90.0), (60.0, 70.0), (0.15, 0.3), (10.0, 20.0))
BOX = (
    *RANGES[:3],
    (2 * np.pi * RANGES[0][0] * RANGES[3][0], 2 * np.pi * RANGES[0][1] * RANGES[3][1]),
    RANGES[4],
)


def specifications(seed: int, count: int) -> np.ndarray:
    """Draws GB (MHz), A0 (dB), Φ (degrees), SR (V/µs) and CL (pF), (count, 5)."""
    low, high = np.transpose(RANGES)
    inputs = np.random.default_rng(seed).uniform(low, high, (count, len(RANGES)))
    inputs[:, 3] *= 2 * np.pi * inputs[:, 0]
    return inputs


def sizes(inputs: np.ndarray) -> np.ndarray:
    """Returns W1, W3, W5, W6, W7 and L (µm), Cc (pF) and I5 (µA), (points, 8), for such inputs."""
    units = np.array([1e6, 1.0, 1.0, 1e6, 1e-12])
    designed = design(Specification(*(inputs * units).T), PROCESS)
    return np.stack(designed, axis=1) * np.array([1e6] * 6 + [1e12, 1e6])
