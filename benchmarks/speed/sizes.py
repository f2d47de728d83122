"""How large the measurements are, in the whole and in the quick form."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Sizes:
    """One form of the measurements.

    Attributes:
      quick: whether it is the quick form.
      calls: names of the calls whose steps are timed; () for all of them.
      rounds: how often steps take turns.
      compile_rounds: by number of arrays of a tanh network, how often compilations take turns.
      residual_blocks: of each width in the residual network.
      transformer_blocks: how many.
      arrays: how many the parameters are split into, to be compared with a single one.
      array_parameters: numbers in all of them together.
      compile_memories: memory sizes of the compilations.
      memories: memory sizes of the steps.
      memory_parameters: length of the vector on which these steps are timed.
      networks: names of the networks whose whole steps are timed.
      directions: lengths of the vectors of the two-loop recursion.
      temporaries: length of the vector of the temporaries.
      lengths: of the vectors over which steps are fitted.
      array_counts: numbers of arrays over which steps are fitted.
      costs: length of the vector on which costs are compared.
      matrix: rows and columns of the dense matrices.
      dense_compile_rounds: as `compile_rounds`, of steps with a dense matrix.
    """

    quick: bool
    calls: tuple[str, ...]
    rounds: int
    compile_rounds: Mapping[int, int]
    residual_blocks: int
    transformer_blocks: int
    arrays: int
    array_parameters: int
    compile_memories: tuple[int, ...]
    memories: tuple[int, ...]
    memory_parameters: int
    networks: tuple[str, ...]
    directions: tuple[int, ...]
    temporaries: int
    lengths: tuple[int, ...]
    array_counts: tuple[int, ...]
    costs: int
    matrix: int
    dense_compile_rounds: Mapping[int, int]


FULL = Sizes(
    quick=False,
    calls=(),
    rounds=7,
    # Compiling takes seconds there, so that one round tells enough.
    compile_rounds={1: 3, 20: 3, 50: 1, 100: 1, 200: 1},
    residual_blocks=3,
    transformer_blocks=6,
    arrays=100,
    array_parameters=104_000,
    compile_memories=(32, 100, 300),
    memories=(2, 5, 10, 20, 40),
    memory_parameters=1_000_000,
    networks=("row RNN", "LSTM", "LeNet-5", "MLP"),
    directions=(100_000, 1_000_000, 4_000_000),
    temporaries=1_000_000,
    lengths=(10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000),
    array_counts=(1, 5, 20, 50, 100, 200, 500),
    costs=1_000_000,
    matrix=4_000,
    dense_compile_rounds={1: 3, 20: 3, 50: 1},
)
QUICK = Sizes(
    quick=True,
    calls=("adaqn", "asnaq", "asnaq-single", "bfgs", "onaq", "omoq", "lsr1"),
    rounds=3,
    compile_rounds={1: 1, 20: 1},
    residual_blocks=1,
    transformer_blocks=1,
    arrays=10,
    array_parameters=10_400,
    compile_memories=(32,),
    memories=(2, 10, 40),
    memory_parameters=100_000,
    networks=("row RNN",),
    directions=(100_000,),
    temporaries=100_000,
    lengths=(10_000, 30_000, 100_000),
    array_counts=(1, 5, 20),
    costs=100_000,
    matrix=1_000,
    dense_compile_rounds={1: 1},
)
