"""Readers of image files, arrays and published data sets, each with a function `read`.

A reader maps (split, config.data) to pixels (N, H, W, C) and labels (N,) or None.
"""
