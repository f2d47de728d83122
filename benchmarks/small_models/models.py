"""A Gaussian process by tinygp, an epidemic by diffrax, a quantum circuit by PennyLane."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

Loss = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is fitted.

    Attributes:
      title: for people.
      parameters: how many.
      loss: makes the loss of them; imports the library.
      spread: starts are drawn from N(0, spread²).
      packages: whose versions the results name.
    """

    title: str
    parameters: int
    loss: Callable[[], Loss]
    spread: float
    packages: tuple[str, ...]

    def start(self, seed: int) -> jax.Array:
        """Returns where a run begins."""
        draw = np.random.default_rng(seed)
        return jnp.asarray(self.spread * draw.normal(size=self.parameters))


def _gaussian_process() -> Loss:
    """−log p(y) of the progress of diabetes (442 patients, 10 measurements, standardised).

    Exponentiated quadratic kernel; log of its amplitude, of the noise and of ten length scales.
    """
    import tinygp

    inputs, targets = datasets.load_diabetes(return_X_y=True)
    inputs = jnp.asarray((inputs - inputs.mean(0)) / inputs.std(0))
    targets = jnp.asarray((targets - targets.mean()) / targets.std())

    def loss(params: jax.Array) -> jax.Array:
        amplitude, noise, scales = params[0], params[1], params[2:]
        stationary = tinygp.kernels.ExpSquared(distance=tinygp.kernels.distance.L2Distance())
        kernel = jnp.exp(2 * amplitude) * tinygp.transforms.Linear(jnp.exp(-scales), stationary)
        diagonal = jnp.exp(2 * noise) + 1e-6
        return -tinygp.GaussianProcess(kernel, inputs, diag=diagonal).log_probability(targets)

    return loss


# Boys in bed on 14 days, of 763: influenza in a boarding school, British Medical Journal, 1978.
IN_BED = (3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4)
BOYS = 763


def _epidemic() -> Loss:
    """−log p of those in bed, negatively binomial about the solution of an SIR model.

    Log of the rates of infection and of recovery, of those infected at first, and of the
    dispersion, in units of 2, ½, 1 and 0.1.
    """
    import diffrax

    days = jnp.arange(len(IN_BED), dtype=jnp.float64)
    counts = jnp.asarray(IN_BED, jnp.float64)

    def change(t: Any, y: jax.Array, rates: Any) -> jax.Array:
        del t
        infection, recovery = rates
        new = infection * y[0] * y[1] / BOYS
        return jnp.stack([-new, new - recovery * y[1]])

    def loss(params: jax.Array) -> jax.Array:
        infection, recovery, first, dispersion = jnp.exp(params) * jnp.array([2, 0.5, 1, 0.1])
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(change),
            diffrax.Tsit5(),
            t0=0.0,
            t1=days[-1],
            dt0=0.1,
            y0=jnp.stack([BOYS - first, first]),
            args=(infection, recovery),
            saveat=diffrax.SaveAt(ts=days),
            stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-8),
            max_steps=1024,
            # A trial may go where nothing ends within that: its loss is not finite.
            throw=False,
        )
        mean = jnp.maximum(solution.ys[:, 1], 1e-6)
        size = 1 / dispersion
        choose = jax.scipy.special.gammaln(counts + size) - jax.scipy.special.gammaln(size)
        choose -= jax.scipy.special.gammaln(counts + 1)
        share = jnp.log(mean) - jnp.log(mean + size)
        return -jnp.sum(choose + counts * share - size * jnp.log1p(mean / size))

    return loss


QUBITS, LAYERS = 6, 4


def ising() -> Any:
    """Returns the Hamiltonian of the chain −Σ Z_i Z_{i+1} − Σ X_i."""
    import pennylane as qml

    pairs = [qml.Z(i) @ qml.Z(i + 1) for i in range(QUBITS - 1)]
    fields = [qml.X(i) for i in range(QUBITS)]
    return qml.Hamiltonian([-1.0] * (len(pairs) + len(fields)), pairs + fields)


def _circuit() -> Loss:
    """The energy of an Ising chain of six spins in a field, by four layers of rotations."""
    import pennylane as qml

    hamiltonian = ising()

    @qml.qnode(qml.device("default.qubit", wires=QUBITS), interface="jax")
    def energy(phases: jax.Array) -> Any:
        for layer in range(LAYERS):
            for i in range(QUBITS):
                qml.RY(phases[layer, i], wires=i)
            for i in range(QUBITS - 1):
                qml.CNOT(wires=[i, i + 1])
        return qml.expval(hamiltonian)

    return lambda params: energy(params.reshape(LAYERS, QUBITS))


MODELS: Mapping[str, Model] = {
    "gaussian-process": Model(
        "Gaussian process, 12 hyper-parameters, 442 observations, by tinygp",
        12,
        functools.cache(_gaussian_process),
        1.0,
        ("tinygp", "scikit-learn"),
    ),
    "epidemic": Model(
        "SIR model of influenza in a school, 4 parameters, by diffrax",
        4,
        functools.cache(_epidemic),
        0.3,
        ("diffrax",),
    ),
    "circuit": Model(
        "Ising chain of 6 spins by a variational circuit, 24 phases, by PennyLane",
        QUBITS * LAYERS,
        functools.cache(_circuit),
        1.0,
        ("pennylane",),
    ),
}
