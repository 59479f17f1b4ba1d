"""The networks that the claims are measured on: their configs, training and cache.

All have the same optimizer, batch size and width as the configs of the digits, and differ only in
the fields stated here. Those of Appendix H are trained for one snapshot and compared with the first
snapshot of the others. Most are also trained on other data, of which names end with the data set.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import Array

import score_sde
from api.trained import TrainedModel
from benchmarks.claims import keys
from benchmarks.claims.trainer import Trainer
from configs.default import Config, complete
from runs.checkpoints import Checkpoints

SNAPSHOT = 400  # steps between the checkpoints that are kept
TINY = {"model.nf": 8, "model.ch_mult": (1,), "training.batch_size": 16}
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


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of the digits, or of another data set.

    Attributes:
      config: the module of its config, in `configs`.
      changes: the fields that differ from it.
      snapshots: the number of checkpoints, which are SNAPSHOT steps apart.
      is_repeated: whether each seed has its own network, as for the digits; otherwise one has.
    """

    config: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    snapshots: int = 2
    is_repeated: bool = True

    def make_config(self, seed: int, *, tiny: bool = False) -> Config:
        """Return the complete config of the network with this seed; `tiny` for tests."""
        config = importlib.import_module(f"configs.{self.config}").get_config()
        snapshot = 2 if tiny else SNAPSHOT
        fields: dict[str, Any] = {
            "seed": seed,
            "training.n_iters": self.snapshots * snapshot,
            "training.snapshot_freq": snapshot,
            "training.snapshot_freq_for_preemption": snapshot,
            "training.snapshot_sampling": False,
            "training.log_freq": 500,
            "training.eval_freq": snapshot,
            **self.changes,
            **(TINY if tiny else {}),
        }
        for name, value in fields.items():
            section, _, field = name.rpartition(".")
            (config[section] if section else config)[field] = value
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
"""By name, in the order of training."""


def _on(data: str, network: Network) -> Network:
    """Return a network of the digits on other data."""
    changes = {**network.changes, **OTHER_DATA[data]}
    return dataclasses.replace(network, changes=changes, is_repeated=False)


NETWORKS |= {
    f"{name}{data}": _on(data, network)
    for data in OTHER_DATA
    for name, network in list(NETWORKS.items())
} | {
    f"{name}, longer": dataclasses.replace(NETWORKS[name], snapshots=6)
    for name in ("VP", "likelihood weighting", "sub-VP")
}


class Store:
    """Trained networks in a folder, each in a workdir whose name contains its key."""

    def __init__(self, folder: Path, *, tiny: bool = False) -> None:
        self.folder, self.tiny = folder, tiny
        self._loaded: dict[tuple, TrainedModel] = {}
        self._functions: dict[str, Callable[..., Array]] = {}

    def config(self, name: str, seed: int) -> Config:
        """Return the config of a network of NETWORKS."""
        return NETWORKS[name].make_config(seed, tiny=self.tiny)

    def key(self, name: str, seed: int) -> str:
        """Return the hash of a network: of its file, or its config and the code that trains it."""
        if name not in NETWORKS:
            return keys.key(name, [f"{name}.safetensors"])
        return keys.key(self.config(name, seed).to_dict(), keys.TRAINING)

    def workdir(self, name: str, seed: int) -> Path:
        """Return the workdir of a network of NETWORKS."""
        plain = "".join(letter if letter.isalnum() else "_" for letter in name)
        return self.folder / "networks" / f"{plain}-{seed}-{self.key(name, seed)}"

    def is_trained(self, name: str, seed: int) -> bool:
        """Return whether the last checkpoint of a network of NETWORKS exists."""
        workdir = self.workdir(name, seed)
        return workdir.is_dir() and NETWORKS[name].snapshots in Checkpoints(workdir).snapshots()

    def load(self, name: str, seed: int, snapshot: int | None = None) -> TrainedModel:
        """Load a file of zoo/, or a trained network at a checkpoint, by default its last one.

        Networks of the same name share the function that their parameters are an argument of, and
        thereby their compiled programs.
        """
        chosen = (name, seed, snapshot)
        if chosen not in self._loaded:
            if name in NETWORKS:
                model = score_sde.load(self.workdir(name, seed), checkpoint=snapshot)
            else:
                model = score_sde.load(keys.ROOT / f"{name}.safetensors")
            function = self._functions.setdefault(name, model.score.func)
            model.score = jax.tree_util.Partial(function, model.params)
            self._loaded[chosen] = model
        return self._loaded[chosen]

    def train(self, chosen: Iterable[tuple[str, int]]) -> None:
        """Train those networks (name, seed) that are not trained yet, and print the progress."""
        missing = [each for each in chosen if not self.is_trained(*each)]
        trainers: dict[str, Trainer] = {}
        for number, (name, seed) in enumerate(missing, 1):
            print(f"training {name}, seed {seed}: {number} of {len(missing)}", flush=True)
            if name not in trainers:
                trainers = {name: Trainer(self.config(name, seed))}
            trainers[name].train(self.config(name, seed), self.workdir(name, seed))
