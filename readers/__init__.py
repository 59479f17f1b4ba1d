"""Readers of image files, arrays and published data sets, and batches of their images.

A reader has a function `read`: (split, config.data) -> pixels (N, H, W, C) and labels (N,) or None.
"""
