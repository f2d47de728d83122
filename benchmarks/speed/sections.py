"""The sections of the measurements, each with a table of its own."""

import dataclasses
from collections.abc import Callable, Mapping

from benchmarks.speed import compiling, growth, matrices, vectors, whole_steps
from benchmarks.speed.sizes import Sizes
from benchmarks.speed.timing import Entry


@dataclasses.dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
      title: stands over its table and its picture.
      about: what is measured, in a few sentences.
      quantity: what the numbers are.
      measure: from the sizes to the lines of the table.
    """

    title: str
    about: str
    quantity: str
    measure: Callable[[Sizes], list[Entry]]


SECTIONS: Mapping[str, Section] = {
    "compile": Section(
        "Compile time over arrays",
        "Processor time of tracing, lowering and compiling one donated training step, the "
        "caller's gradient included, without any cache, of square tanh layers 32 wide (a weight "
        "and a bias each; a single array is a weight alone) on batches of 16. Kernels are parts "
        "of the optimized program that are compiled one by one, and exact. Flattened calls get one "
        "vector in place of the arrays. Where it takes seconds there is one timed round.",
        "ratio",
        compiling.by_arrays,
    ),
    "networks": Section(
        "Compile time of networks",
        "Likewise for a residual network with batch normalization, on 8 images of 32×32×3, and a "
        "transformer 64 wide with 4 heads, causal attention and linear layers of 256, on 8 "
        "sequences of 32 symbols. One timed round.",
        "ratio",
        compiling.by_network,
    ),
    "arrays": Section(
        "Steps on many arrays",
        "Whole steps on many arrays against steps on a single array of as many numbers, in loops "
        "of 20. On the quadratic nearly all the time is the optimizer's. The single array of the "
        "tanh network is one that the loss takes apart. The note has what the many arrays add: "
        "kernels of the compiled step, and the time by which it is longer for each of them.",
        "ratio",
        growth.by_split,
    ),
    "memory": Section(
        "Memory size",
        "Compile times, of the processor, of a tanh network of 4 arrays against "
        "`optax.lbfgs(memory_size=m)`, one "
        "timed round; and the exponent b of t ~ m^b, fitted by least squares on logarithms to the "
        "median times of whole steps on a quadratic. Sizes count from where the time is twice the "
        "shortest on, and at least the three largest.",
        "ratio or exponent",
        growth.by_memory,
    ),
    "steps": Section(
        "Whole steps of networks",
        "Steps with the caller's gradient against gradients alone, as many as a step takes, and "
        "against Adam's steps. A turn is a loop of 5 steps, 20 on the row RNN; of single compiled "
        "steps on LeNet-5. Calls with a target come flattened where that is faster, and their "
        "notes have what the gradients, the losses at the ends of cycles and reading the memories "
        "take alone, without which no step can do.",
        "ratio",
        whole_steps.measure,
    ),
    "direction": Section(
        "Direction",
        "The two-loop recursion with ten pairs against a plain reading of S and Y twice.",
        "ratio",
        vectors.directions,
    ),
    "matrices": Section(
        "Dense matrices",
        "Whole steps on a quadratic, of single compiled and donated steps, against multiplying the "
        "matrix by a number in place. H y has to be known before any of H⁺ can be written: the "
        "notes have what a sum over the matrix and the multiplication take alone. Compile times "
        "are those of the tanh network, as above.",
        "ratio",
        matrices.measure,
    ),
    "temporaries": Section(
        "Temporaries",
        "What a donated update takes beside its arguments, from the compiler and exact; what the "
        "loss's own gradient takes is left out. In copies of the params.",
        "copies",
        vectors.temporaries,
    ),
    "scaling": Section(
        "Growth of steps",
        "The exponent b of t ~ n^b, fitted by least squares on logarithms to the median times of "
        "whole steps on a quadratic, over the number n of parameters in one array and of arrays "
        f"of {growth.ARRAY_PARAMETERS:,} numbers. Sizes count from where the time is twice the "
        "shortest on, and at least the three largest.",
        "exponent",
        growth.by_size,
    ),
    "costs": Section(
        "Costs beside the papers' counts",
        "The time of a whole step on a quadratic less its gradients, in passes over a vector of "
        "the params' length: a pass is a twentieth of the time of a product with twenty rows. The "
        "papers count multiply-adds a parameter; evaluations of the loss, line searches among "
        "them, belong to the gradients there but to the optimizer's time here. The papers "
        "state nothing where there is no formula.",
        "passes",
        vectors.costs,
    ),
}
