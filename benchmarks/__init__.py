"""The papers' experiments and the speed of the optimizers, run by `python -m benchmarks`."""
