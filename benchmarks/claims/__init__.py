"""Measurements of the paper's claims on small real data; `python -m benchmarks.claims --help`.

`table.py` lists the claims with their margins, `networks.py` the networks, and `page.py` writes
docs/claims.md.
"""
