"""Functions fitted by small networks, full batch: what the experiments share, and the two of them.

`study` runs a `Study`; `curve` and `levy` are the experiments.
"""
