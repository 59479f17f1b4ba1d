"""Measurements behind the pages of results; one file for each page, `python -m studies.NAME`.

`common.py` has what they share: networks trained by config, results cached under a hash of config
and code, errors and verdicts, and the generated blocks of pages.
"""
