"""Measurements behind the pages of results; `python -m studies.NAME` writes a page.

`common.py` has what they share: networks trained by config, results cached under a hash of config
and code, errors and verdicts, and the generated blocks of pages. `distances.py` compares samples
with held-out images. The files claims_*.py belong to `claims.py`, and posterior_*.py to
`posteriors.py`.
"""
