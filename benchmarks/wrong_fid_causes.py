"""The causes of a wrong FID that `benchmarks.wrong_fid` measures, each beside the right way."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

DIGITS, DIGITS_VE, FASHION = "digits_vp", "digits_ve", "fashion_vp"
"""Networks of zoo/."""
TRAINED = "trained"  # the network of --workdir, whose parameters without average are known


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How samples are drawn, made images, and compared.

    Attributes:
      network: the name of the network.
      count: the number of samples.
      fields: (name, value) of the config that differ from the network's. Unless they state another
        sampler, it is `dpm++_2m` with 20 steps, which adds no noise.
      average: whether parameters are the moving average.
      t_end: the last time of the sampler; None for the SDE's.
      linear_levels: whether the noise levels of the VE SDE are evenly spaced; else geometric.
      late: by how much the time that the network is conditioned on is too large.
      rounding: a key of `ROUNDINGS`.
      file: a key of `FILES`, for the samples.
      split: the images to compare with, train or test.
      split_file: a key of `FILES`, for these images.
      most: the number of these images; None for all.
    """

    network: str
    count: int
    fields: tuple[tuple[str, Any], ...] = ()
    average: bool = True
    t_end: float | None = None
    linear_levels: bool = False
    late: float = 0.0
    rounding: str = "nearest"
    file: str = "unchanged"
    split: str = "train"
    split_file: str = "unchanged"
    most: int | None = None


class Cause(NamedTuple):
    """A cause of a wrong FID.

    Attributes:
      group: the heading of its table.
      name: what is wrong.
      right: the protocol without it.
      changes: the attributes of the protocol that it changes.
    """

    group: str
    name: str
    right: Protocol
    changes: dict[str, Any]

    @property
    def wrong(self) -> Protocol:
        """The protocol with the cause."""
        return dataclasses.replace(self.right, **self.changes)


def _changed(name: str, value: Any, right: Protocol) -> dict[str, Any]:
    """Return the change of one more config field."""
    return {"fields": (*right.fields, (name, value))}


SOLVER = Protocol(DIGITS, 10_000)
PREDICTOR = Protocol(DIGITS, 2000, (("sampling.method", "pc"),))
VE = Protocol(DIGITS_VE, 2000, (("sampling.method", "pc"),))
CLOTHES = Protocol(FASHION, 2000)

PARAMETERS, NOISE = "Parameters", "Noise of the last step"
GRID, STEPS = "Time grid", "Steps and corrections"
BYTES, STORED = "From samples to bytes", "Files and sizes"
REFERENCE = "Images to compare with"

CAUSES = (
    Cause(
        PARAMETERS,
        "parameters of the last step instead of their moving average",
        Protocol(TRAINED, 10_000),
        {"average": False},
    ),
    Cause(
        PARAMETERS,
        "bfloat16 instead of float32",
        SOLVER,
        _changed("model.dtype", "bfloat16", SOLVER),
    ),
    *(
        Cause(NOISE, "kept", right, _changed("sampling.noise_removal", False, right))
        for right in (PREDICTOR, VE, CLOTHES)
    ),
    Cause(GRID, "stops at t = 1e-2 instead of 1e-3", SOLVER, {"t_end": 1e-2}),
    Cause(GRID, "stops at t = 1e-2 instead of 1e-3", CLOTHES, {"t_end": 1e-2}),
    Cause(GRID, "stops at t = 1e-5 instead of 1e-3", SOLVER, {"t_end": 1e-5}),
    Cause(GRID, "stops at t = 1e-5 instead of 1e-3", PREDICTOR, {"t_end": 1e-5}),
    *(
        Cause(
            GRID,
            "20 steps evenly spaced in t instead of log SNR",
            right,
            _changed("sampling.schedule", "time", right),
        )
        for right in (SOLVER, CLOTHES)
    ),
    Cause(GRID, "noise levels evenly spaced instead of geometric", VE, {"linear_levels": True}),
    Cause(GRID, "the network's time is one of 250 steps too large", PREDICTOR, {"late": 1 / 250}),
    Cause(STEPS, "10 steps instead of 20", SOLVER, _changed("sampling.num_steps", 10, SOLVER)),
    Cause(STEPS, "50 steps instead of 250", PREDICTOR, _changed("model.num_scales", 50, PREDICTOR)),
    Cause(STEPS, "no Langevin corrections", VE, _changed("sampling.corrector", "none", VE)),
    Cause(
        STEPS, "snr 0.075 (that of LSUN) instead of 0.16", VE, _changed("sampling.snr", 0.075, VE)
    ),
    *(
        Cause(
            BYTES, "rounded down instead of to the nearest level", right, {"rounding": "truncated"}
        )
        for right in (SOLVER, CLOTHES)
    ),
    Cause(
        BYTES,
        "the inverse of data without dequantization",
        CLOTHES,
        {"rounding": "not dequantized"},
    ),
    Cause(BYTES, "not rounded", CLOTHES, {"rounding": "floats"}),
    Cause(
        BYTES, "not clipped: values out of range wrap around", CLOTHES, {"rounding": "not clipped"}
    ),
    Cause(BYTES, "each image stretched to 0 .. 255", CLOTHES, {"rounding": "stretched"}),
    Cause(BYTES, "[-1, 1] taken for [0, 1]", CLOTHES, {"rounding": "not shifted"}),
    Cause(STORED, "samples stored as JPEG of quality 95", CLOTHES, {"file": "JPEG 95"}),
    Cause(STORED, "samples stored as JPEG of quality 75", CLOTHES, {"file": "JPEG 75"}),
    Cause(STORED, "samples reduced to half their size, and enlarged", CLOTHES, {"file": "halved"}),
    Cause(
        STORED,
        "both sets reduced to half their size, the samples with aliasing",
        dataclasses.replace(CLOTHES, file="halved", split_file="halved"),
        {"file": "halved, aliased"},
    ),
    *(
        Cause(REFERENCE, "held-out instead of training images", right, {"split": "test"})
        for right in (SOLVER, CLOTHES)
    ),
    Cause(
        REFERENCE, "1,408 of the 1,438 training images: full batches of 128", SOLVER, {"most": 1408}
    ),
    Cause(REFERENCE, "1,000 training images instead of 60,000", CLOTHES, {"most": 1000}),
    Cause(REFERENCE, "dequantized images", CLOTHES, {"split_file": "dequantized"}),
)
