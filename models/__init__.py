"""Networks, their registry, and `score.py`, which turns a network's output into a score.

A score network maps (x, label, rngs) to an array of x's shape. `registry.py` states which fields of
`config.model` each network takes and which features it supports.
"""

from models.registry import NETWORKS, Network, networks_supporting

__all__ = ["NETWORKS", "Network", "networks_supporting"]
