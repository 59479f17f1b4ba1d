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
      changes: the attributes of the protocol that it changes; `fields` are added to those of it.
    """

    group: str
    name: str
    right: Protocol
    changes: dict[str, Any]

    @property
    def wrong(self) -> Protocol:
        """The protocol with the cause."""
        fields = self.right.fields + self.changes.get("fields", ())
        return dataclasses.replace(self.right, **self.changes | {"fields": fields})


SOLVER = Protocol(DIGITS, 10_000)
PREDICTOR = Protocol(DIGITS, 2000, (("sampling.method", "pc"),))
VE = Protocol(DIGITS_VE, 1000, (("sampling.method", "pc"),))
CLOTHES = Protocol(FASHION, 1000, (("sampling.solver", "dpm++_2m_sde"),))
HALVED = dataclasses.replace(CLOTHES, file="halved", split_file="halved")

PARAMETERS = "Parameters"
NOISE = "Noise of the last step"
GRID = "Time grid"
STEPS = "Steps"
BYTES = "From samples to bytes"
STORED = "Files and sizes"
REFERENCE = "Images to compare with"

LAST = "parameters of the last step instead of their moving average"
KEPT = "noise of the last step kept"
ADDED = "noise of the last of 1,000 steps of the predictor added"
EARLY = "stops at t = 1e-2 instead of 1e-3"
LATE = "stops at t = 1e-5 instead of 1e-3"
EVEN_TIMES = "20 steps evenly spaced in t instead of log SNR"
EVEN_LEVELS = "noise levels evenly spaced instead of geometric"
FEWER = "50 steps instead of 250"
DOWN = "rounded down instead of to the nearest level"
STRETCHED = "each image stretched to 0 .. 255"
ALIASED = "both sets reduced to half their size, the samples with aliasing"
HELD_OUT = "held-out instead of training images"


def _set(name: str, value: Any) -> dict[str, Any]:
    """Return the change of one config field."""
    return {"fields": ((name, value),)}


CAUSES = (
    Cause(PARAMETERS, LAST, Protocol(TRAINED, 10_000), {"average": False}),
    Cause(PARAMETERS, "bfloat16 instead of float32", SOLVER, _set("model.dtype", "bfloat16")),
    Cause(NOISE, KEPT, PREDICTOR, _set("sampling.noise_removal", False)),
    Cause(NOISE, KEPT, VE, _set("sampling.noise_removal", False)),
    Cause(NOISE, ADDED, CLOTHES, {"rounding": "noised"}),
    Cause(GRID, EARLY, SOLVER, {"t_end": 1e-2}),
    Cause(GRID, LATE, SOLVER, {"t_end": 1e-5}),
    Cause(GRID, LATE, PREDICTOR, {"t_end": 1e-5}),
    Cause(GRID, EVEN_TIMES, SOLVER, _set("sampling.schedule", "time")),
    Cause(GRID, EVEN_LEVELS, VE, {"linear_levels": True}),
    Cause(GRID, "the network's time is one of 250 steps too large", PREDICTOR, {"late": 1 / 250}),
    Cause(STEPS, "10 steps instead of 20", SOLVER, _set("sampling.num_steps", 10)),
    Cause(STEPS, FEWER, PREDICTOR, _set("model.num_scales", 50)),
    Cause(BYTES, DOWN, SOLVER, {"rounding": "truncated"}),
    Cause(BYTES, DOWN, CLOTHES, {"rounding": "truncated"}),
    Cause(BYTES, "inverse without dequantization", CLOTHES, {"rounding": "not dequantized"}),
    Cause(BYTES, "not rounded", CLOTHES, {"rounding": "floats"}),
    Cause(BYTES, "not clipped: bytes wrap around", CLOTHES, {"rounding": "not clipped"}),
    Cause(BYTES, STRETCHED, CLOTHES, {"rounding": "stretched"}),
    Cause(BYTES, "[-1, 1] taken for [0, 1]", CLOTHES, {"rounding": "not shifted"}),
    Cause(STORED, "samples stored as JPEG of quality 95", CLOTHES, {"file": "JPEG 95"}),
    Cause(STORED, "samples stored as JPEG of quality 75", CLOTHES, {"file": "JPEG 75"}),
    Cause(STORED, "samples reduced to half their size, and enlarged", CLOTHES, {"file": "halved"}),
    Cause(STORED, ALIASED, HALVED, {"file": "halved, aliased"}),
    Cause(REFERENCE, HELD_OUT, SOLVER, {"split": "test"}),
    Cause(REFERENCE, HELD_OUT, CLOTHES, {"split": "test"}),
    Cause(REFERENCE, "1,408 training images, full batches, of 1,438", SOLVER, {"most": 1408}),
    Cause(REFERENCE, "1,000 training images of 60,000", CLOTHES, {"most": 1000}),
    Cause(REFERENCE, "dequantized images", CLOTHES, {"split_file": "dequantized"}),
)


def _thread(name: str, number: int) -> str:
    """Return the link to a thread on GitHub."""
    return f"([{name}#{number}](https://github.com/{name}/issues/{number}))"


REPRODUCTION = _thread("dexin-peng/score_sde_pytorch", 8)  # of NCSN++ on CIFAR-10
ELSEWHERE = {
    LAST: f"DDPM on CIFAR-10: 8.06 instead of 3.21 {_thread('w86763777/pytorch-ddpm', 22)}",
    KEPT: f"1,000 samples of NCSN++: 38 instead of 33 {REPRODUCTION}",
    EVEN_TIMES: f"DDIM: 5.68 instead of 4.26 for quadratic ones {_thread('ermongroup/ddim', 3)}",
    EVEN_LEVELS: f"1,000 samples of NCSN++: 40 instead of 33 {REPRODUCTION}",
    FEWER: f"100 instead of 1,000: 3.39 instead of 2.99 {_thread('forever208/DDPM-IP', 20)}",
    STRETCHED: f"found in DPS {_thread('DPS2022/diffusion-posterior-sampling', 5)}",
    ALIASED: "images of FFHQ against themselves: at least 6 "
    "([clean-fid](https://github.com/GaParmar/clean-fid))",
    HELD_OUT: f"SNGAN on CIFAR-10: about 21 instead of 14 {_thread('GongXinyuu/sngan.pytorch', 5)}",
}
"""FIDs that users and authors of other code bases state, by the name of the cause."""
