"""Networks (x, label, rngs) -> array of x's shape, and `score.py`, which makes score functions of them."""

from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSN, NCSNv2, NCSNv2_128, NCSNv2_256

NETWORKS = {
    "ncsnpp": NCSNpp,
    "ddpm": DDPM,
    "ncsn": NCSN,
    "ncsnv2_64": NCSNv2,
    "ncsnv2_128": NCSNv2_128,
    "ncsnv2_256": NCSNv2_256,
}
"""By `config.model.name`. Constructor arguments are named as the fields of `config.model` from which they come."""
