"""Nesterov- and momentum-accelerated quasi-Newton training for JAX, as Optax transformations."""

from naqopt.optimizers.adaptive import adaqn, asnaq
from naqopt.state import diagnostics, eval_params

__all__ = ["adaqn", "asnaq", "diagnostics", "eval_params"]
