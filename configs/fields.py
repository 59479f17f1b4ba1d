"""Every config field: its default value, the values it may have, what it affects, and its meaning.

Names and defaults are those of the official release; `differences.py` lists the exceptions. Where
the official experiments disagree, the default is that of CIFAR-10 with the VE SDE in continuous
time. A field without a default (`ABSENT`) is an option of some networks, which `networks.py` sets.

The fields are declared in `training_fields.py` and `evaluation_fields.py`, and the options of
samplers, tasks and methods where they are read. `affects` names groups
of results (`groups.py`); `runs.DEPENDENCIES` states which files depend on which groups.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping

from configs import evaluation_fields, training_fields
from configs.declaration import ABSENT, Field
from configs.evaluation_fields import FEATURES

__all__ = ["ABSENT", "FEATURES", "FIELDS", "INERT"]


DECLARED: dict[str, Field] = {
    **training_fields.GENERAL,
    **training_fields.DATA,
    **training_fields.MODEL,
    **training_fields.TRAIN,
    **training_fields.OPTIM,
    **evaluation_fields.SAMPLING,
    **evaluation_fields.GUIDE,
    **evaluation_fields.CLASSIFY,
    **evaluation_fields.RESTORATION,
    **evaluation_fields.CALIBRATE,
    **evaluation_fields.RECONSTRUCTION,
    **evaluation_fields.EVAL,
}


class _Fields(Mapping[str, Field]):
    """The declared fields, and the options of registry entries, which users may extend."""

    def _table(self) -> dict[str, Field]:
        options = {
            **training_fields.parameter_fields(),
            **evaluation_fields.sampler_fields(),
            **evaluation_fields.restoration_fields(),
        }
        return {**DECLARED, **options, **DECLARED}  # A declaration replaces an option.

    def __getitem__(self, name: str) -> Field:
        return DECLARED[name] if name in DECLARED else self._table()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __len__(self) -> int:
        return len(self._table())

    def items(self) -> ItemsView[str, Field]:
        return self._table().items()


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
