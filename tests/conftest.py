"""What has to be set before JAX is imported, and the fixtures that several test files share."""

import gc
import importlib.metadata
import itertools
import os
import pathlib

import pytest

# XLA reads its flags once, on JAX's import. The sharding tests run on eight simulated devices.
_FLAGS = {"xla_force_host_platform_device_count": 8}
if "NAQOPT_QUICK_COMPILATION" in os.environ:
    # Compiling takes most of the tests' time, and on a CPU three quarters of it go into making each
    # kernel a module of its own and into optimising it. These change machine code only, not the
    # program that XLA makes of ours. With AVX, LLVM without optimisation makes wrong code (NaN of
    # finite gradients); with SSE4.2 it makes none for float16, see the marker `default_compiler`.
    # Nor is a module split among threads: each of two processes has one core.
    _FLAGS |= {
        "xla_backend_optimization_level": 0,
        "xla_cpu_max_isa": "SSE4_2",
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    # XLA ends the process at a flag that it does not know: that of jaxlib 0.12 has not this one.
    _JAXLIB = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    if _JAXLIB < (0, 11):
        _FLAGS["xla_cpu_use_fusion_emitters"] = "false"
_GIVEN = os.environ.get("XLA_FLAGS", "")
_ADDED = [f"--{name}={value}" for name, value in _FLAGS.items() if name not in _GIVEN]
os.environ["XLA_FLAGS"] = " ".join([_GIVEN, *_ADDED]).strip()

# NumPy's BLAS starts a thread for each core, and of two processes each has one core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A second run, or another process of this one, finds what was compiled in the cache.
_ROOT = pathlib.Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


_MAPS = pathlib.Path("/proc/self/maps")
_MOST_MAPS = 25_000  # Linux gives a process 65,530 by default
_finished = itertools.count(1)


def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs before their memory maps are too many, which ends in a crash."""
    del item, nextitem
    if next(_finished) % 20 or not _MAPS.exists():
        return
    with _MAPS.open("rb") as maps:
        if sum(1 for _ in maps) < _MOST_MAPS:
            return
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
    """Turns on 64-bit numbers for one test."""
    from optimizer_table import enable_x64

    with enable_x64():
        yield
