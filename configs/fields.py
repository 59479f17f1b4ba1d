"""All config fields: those of the table, and the options of registry entries.

The options of samplers, tasks and methods are declared where they are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import ItemsView, Iterator, Mapping

import sampling
from configs.table import ABSENT, DECLARED, FEATURES, Field, affecting
from controllable.methods import METHODS
from controllable.tasks import TASKS
from models import NETWORKS
from options import FINITE, NOISE_SCALE, Option
from sde_lib import SDES

__all__ = ["ABSENT", "FEATURES", "FIELDS", "GROUPS", "INERT", "Field"]

GROUPS = {
    "network": "the meaning of a checkpoint's parameters",
    "noise": "the distribution of noised images x_t, given the data set",
    "training": "the parameters that training produces",
    "images": "which images are trained on and evaluated",
    "location": "where these images are stored",
    "loss": "the training objective",
    "precision": "the rounding of everything that the network computes",
    "samples": "generated images",
    "guidance": "generated images of requested classes",
    "likelihood": "bits/dim",
    "rounds": "how an evaluation is split into files",
    "quality": "distances between generated images and data",
    "classifier": "the classifier that guides samples",
    "restore": "solutions of inverse problems",
    "calibration": "tests of the spread of these solutions",
    "seed": "every random number",
}
"""Groups of results: what changes with the fields of a group. Other fields are about frequencies,
memory and speed. `folders.DEPENDENCIES` states which files depend on which groups."""


def _of_registries() -> dict[str, Field]:
    """Return the options of registry entries, which users may extend, and the numbers of SDEs."""
    found = {}
    for section, owners, affects in (
        ("model", NETWORKS, "network"),
        ("sampling", sampling.kinds(), "samples"),
        ("restore", {**TASKS, **METHODS}, "restore"),
    ):
        for entry in owners.values():
            named = {f"{section}.{name}": option for name, option in entry.options.items()}
            found |= affecting(named, affects)
    for name, sde in SDES.items():
        for field in dataclasses.fields(sde):
            if field.name not in ("T", "t_min", "t_end") and isinstance(field.default, float):
                domain = FINITE if field.default <= 0 else NOISE_SCALE
                option = Option(ABSENT, domain, f"{field.name} of training.sde = {name!r}.")
                found |= affecting({f"model.{field.name}": option}, "network", "noise")
    return found


class _Fields(Mapping[str, Field]):
    """The declared fields, and those of registries. A declaration replaces an option."""

    def _table(self) -> dict[str, Field]:
        return {**DECLARED, **_of_registries(), **DECLARED}

    def __getitem__(self, name: str) -> Field:
        return DECLARED[name] if name in DECLARED else self._table()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())

    def items(self) -> ItemsView[str, Field]:
        return self._table().items()  # Once, and not for each field.


FIELDS = _Fields()
"""All fields, by their names on the command line."""

INERT = {
    "device": "A PyTorch device; JAX finds its devices.",
    "training.loss": "Nothing reads it; ve/ncsn/celeba means training.sde.",
    "training.continuouse": "Nothing reads it; ve/ncsnv2/bedroom means training.continuous.",
    "optim.amsgrad": "Nothing reads it; it is False wherever it occurs.",
    "model.attention_type": "Nothing reads it; there is one kind of attention.",
    "model.conv_size": "Nothing reads it; convolutions are 3x3.",
    "model.sigma_begin": "Nothing reads it; the fields are model.sigma_max and model.sigma_min.",
}
"""Fields of official configs that are accepted and have no effect, as in the official code."""
