"""The papers' experiments and the speed of the optimizers, run by `python -m benchmarks`.

An experiment is a file in `studies`: what is trained (from `data`, `models` or `functions`), by
what, how long and from which starts, and how the results are told. `training` has the loops, and
`reports` the files, tables and pictures. `speed` measures times and stands apart.
"""
