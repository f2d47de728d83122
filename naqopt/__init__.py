"""Nesterov- and momentum-accelerated quasi-Newton training as Optax gradient transformations."""

from naqopt.batches import full_gradient, sliding_batches
from naqopt.changed_loss import forget_loss
from naqopt.flatten import flatten
from naqopt.inverse_hessian import InverseHessian, inverse_hessian
from naqopt.optimizers.adaqn import adaqn
from naqopt.optimizers.asnaq import asnaq
from naqopt.optimizers.full_batch import bfgs, moq, naq
from naqopt.optimizers.mnaq import mnaq
from naqopt.optimizers.multi_batch import multi_batch_omoq
from naqopt.optimizers.online import obfgs, omoq, onaq
from naqopt.optimizers.self_scaled import ssbfgs, ssbroyden
from naqopt.optimizers.symmetric_rank_one import lsr1, mosr1, sr1n
from naqopt.optimizers.variance_reduced import svr_naq, svrg, svrg2
from naqopt.saved_state import check_saved_state
from naqopt.sharding import state_sharding
from naqopt.snapshots import snapshot
from naqopt.state import diagnostics, eval_params
from naqopt.steps import schedules
from naqopt.steps.armijo import armijo
from naqopt.steps.trust_region import RadiusRule
from naqopt.steps.wolfe import wolfe

__version__ = "0.2.0"

__all__ = [
    "InverseHessian",
    "RadiusRule",
    "adaqn",
    "armijo",
    "asnaq",
    "bfgs",
    "check_saved_state",
    "diagnostics",
    "eval_params",
    "flatten",
    "forget_loss",
    "full_gradient",
    "inverse_hessian",
    "lsr1",
    "mnaq",
    "moq",
    "mosr1",
    "multi_batch_omoq",
    "naq",
    "obfgs",
    "omoq",
    "onaq",
    "schedules",
    "sliding_batches",
    "snapshot",
    "sr1n",
    "ssbfgs",
    "ssbroyden",
    "state_sharding",
    "svr_naq",
    "svrg",
    "svrg2",
    "wolfe",
]
