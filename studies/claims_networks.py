"""The networks that the claims are measured on.

All have the same optimizer, batch size and width as the configs of the digits, and differ only in
the fields stated here. Those of Appendix H are trained for one snapshot and compared with the first
snapshot of the others. Most are also trained on other data, of which names end with the data set.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from configs.default import Config, complete

SNAPSHOT = 400  # steps between the checkpoints that are kept
VP, VE = "vp.digits_ddpmpp_continuous", "ve.digits_ncsnpp_continuous"
WEIGHTED = {"training.likelihood_weighting": True, "training.importance_weighting": True}
DISCRETE = {"training.continuous": False}
DDPM = {"model.resblock_type": "ddpm", "model.skip_rescale": False}
NCSNV2 = {
    "model.name": "ncsnv2_64",
    "model.normalization": "InstanceNorm++",
    "model.nonlinearity": "elu",
    "model.interpolation": "bilinear",
    "model.nf": 9,  # About as many parameters as the others.
    "optim.lr": 1e-3,  # That of NCSN; its successors' published rate is lower still.
}
SIZE = {"data.image_size": 16}  # The images of other data sets are made smaller.
OTHER_DATA = {
    ", Fashion-MNIST": SIZE
    | {"data.dataset": "FASHION_MNIST", "data.num_channels": 1, "model.sigma_max": 12.0},
    ", emoji": SIZE | {"data.dataset": "emoji", "data.num_channels": 3, "model.sigma_max": 18.0},
}
"""Changes for other data sets, by the end of the name. The largest noise level is the distance of
the two images that differ most (Song & Ermon 2020, Technique 1): 11.6 and 17.7 of 3,000 images."""


class Network(NamedTuple):
    """A network of the digits, or of another data set.

    Attributes:
      config: the module of its config, in `configs`.
      changes: the fields that differ from it.
      snapshots: the number of checkpoints, which are SNAPSHOT steps apart.
      is_repeated: whether each seed has its own network, as for the digits; otherwise one has.
    """

    config: str
    changes: Mapping[str, Any] = {}
    snapshots: int = 2
    is_repeated: bool = True

    def make_config(self, seed: int) -> Config:
        """Return the complete config of the network with this seed."""
        config = importlib.import_module(f"configs.{self.config}").get_config()
        config.seed = seed
        frequencies = ("snapshot_freq", "snapshot_freq_for_preemption", "eval_freq")
        config.training.update(dict.fromkeys(frequencies, SNAPSHOT))
        config.training.update(snapshot_sampling=False, log_freq=500)
        config.training.n_iters = self.snapshots * SNAPSHOT
        for name, value in self.changes.items():
            section, _, field = name.partition(".")
            config[section][field] = value
        return complete(config)


NETWORKS = {
    "VP": Network(VP),
    "VE": Network(VE),
    "sub-VP": Network("subvp.digits_ddpmpp_continuous"),
    "likelihood weighting": Network(VP, WEIGHTED),
    "DDPM++ discrete": Network(VP, DISCRETE),
    "DDPM": Network(VP, DISCRETE | DDPM),
    "NCSN++ discrete": Network(VE, DISCRETE | {"model.embedding_type": "positional"}),
    "NCSNv2": Network(VE, DISCRETE | NCSNV2),
    "EDM": Network("edm.digits_ddpmpp"),
    "rectified flow": Network("flow.digits_ddpmpp"),
    "no FIR filter": Network(VE, {"model.fir": False}, snapshots=1),
    "no rescaled skips": Network(VE, {"model.skip_rescale": False}, snapshots=1),
    "DDPM's blocks": Network(VE, {"model.resblock_type": "ddpm"}, snapshots=1),
    "no progressive input": Network(VE, {"model.progressive_input": "none"}, snapshots=1),
    "twice the blocks": Network(VE, {"model.num_res_blocks": 2}, snapshots=1),
}
"""By name."""

for _name, _network in list(NETWORKS.items()):
    for _data, _fields in OTHER_DATA.items():
        _changes = {**_network.changes, **_fields}
        NETWORKS[_name + _data] = _network._replace(changes=_changes, is_repeated=False)
for _name in ("VP", "likelihood weighting", "sub-VP"):
    NETWORKS[f"{_name}, longer"] = NETWORKS[_name]._replace(snapshots=6)
