"""Readers of image files, arrays and published data sets, and batches of their images.

A reader has a function `read`: (split, config.data) -> Images.
"""
