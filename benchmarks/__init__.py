"""Measurements of speed and memory; `python -m benchmarks --help` lists the cases.

`harness.py` times programs in turn, each in a process of its own. `timed.py` has what is timed,
`peer.py` the same work in PyTorch, and `memory.py` what compilers state without running anything.
"""
