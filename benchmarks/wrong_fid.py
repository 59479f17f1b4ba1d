"""The effect of known causes of a wrong FID on networks of zoo/, in features of the classifier.

python -m benchmarks.wrong_fid --workdir=DIR [--results=FILE] [--write]

DIR is a workdir that main.py trained with configs/vp/digits_ddpmpp_continuous.py; classifiers are
kept beside the file of results, from which a later run resumes. A result counts for the protocol
and the parameters that it was measured with; delete the file after a change of the code.
Fashion-MNIST must be installed (docs/data.md). `--write` puts the tables into docs/reproduce.md.

For each cause, the same random numbers give the samples with and without it. The standard error of
the difference is the jackknife's over ten groups of images, the same for both; the images to
compare with are taken as given.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import factory
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from api.stored import load_config
from checkpoints import Checkpoints
from jax import Array

import pretrained
import sampling
from benchmarks import comparison, markdown, parts, wrong_fid_page
from benchmarks.wrong_fid_causes import CAUSES, CLOTHES, SOLVER, TRAINED, Cause, Protocol
from benchmarks.wrong_fid_images import FILES, ROUNDINGS
from configs.default import Config
from datasets import Images
from experiment import Experiment
from metrics import features
from metrics.distances import Moments, frechet_distance, jackknife
from metrics.sample_quality import JACKKNIFE_GROUPS
from models.building import Params
from sde_lib import SDE, VESDE, Score

BATCH_SIZE = 500  # samples drawn at a time
NUMBERS = (100, 500, 1000)  # of samples, beside those of the protocol
PAGE = parts.ROOT / "docs" / "reproduce.md"


# --- networks ---


@functools.cache
def identity(name: str) -> str:
    """Return what identifies the parameters of a network: the checksum of its file or average."""
    if name == TRAINED:
        experiment = experiment_of(name, ())
        found, _ = experiment.trained(flags.FLAGS.workdir)
        return json.dumps(experiment.identity(flags.FLAGS.workdir, found), sort_keys=True)
    content = (parts.ROOT / "zoo" / f"{name}.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()[:12]


@functools.cache
def network(name: str) -> tuple[Config, Params, Params]:
    """Return the config, the averaged parameters and those of the last step.

    Files of zoo/ have the average only, which then stands for both.
    """
    if name == TRAINED:
        return _trained(flags.FLAGS.workdir)
    path = parts.ROOT / "zoo" / f"{name}.safetensors"
    config = load_config(path)
    experiment = Experiment(config, jax.devices()[:1])
    ema = jax.tree.map(
        jnp.asarray, pretrained.read(str(path), experiment.network, experiment.config).ema
    )
    return config, ema, ema


def _trained(workdir: str) -> tuple[Config, Params, Params]:
    config = comparison.load_config("configs/vp/digits_ddpmpp_continuous.py")
    experiment = Experiment(config, jax.devices()[:1])
    found, ema = experiment.trained(workdir)
    trees = Checkpoints(workdir).restore(found, {"params": experiment.abstract_params})
    return config, ema, trees["params"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearLevels(VESDE):
    """The VE SDE, sampled with evenly spaced noise levels."""

    def sigmas(self, n: int) -> np.ndarray:
        """Return n evenly spaced noise levels, descending; float64 (n,)."""
        return np.linspace(self.sigma_max, self.sigma_min, n)

    def sampling_times(self, n: int) -> Array:
        """Return the times (n,) of these levels."""
        return self.time_at(jnp.asarray(self.sigmas(n)))


# --- samples ---


@functools.cache
def experiment_of(name: str, fields: tuple[tuple[str, Any], ...]) -> Experiment:
    """Return the experiment of a network with these changes of its config."""
    config = Config(network(name)[0].to_dict())
    config.sampling.update(method="solver", solver="dpm++_2m", num_steps=20)
    config.update_from_flattened_dict(dict(fields))
    return Experiment(config, jax.devices()[:1])


def sampling_sde(experiment: Experiment, protocol: Protocol) -> SDE:
    """Return the SDE whose time grid the sampler uses."""
    sde = experiment.sde
    if protocol.linear_levels:
        sde = LinearLevels(**dataclasses.asdict(sde))
    return sde if protocol.t_end is None else dataclasses.replace(sde, t_end=protocol.t_end)


def late_score(score: Score, sde: SDE, late: float) -> Score:
    """Return the score of a network that is conditioned on the time t + late instead of t.

    Its estimate of the noise is then divided by std(t), as for the right time.
    """

    def shifted(x: Array, t: Array) -> Array:
        other = jnp.minimum(t + late, sde.T)
        ratio = (sde.std(other) / sde.std(t))[:, None, None, None]
        return ratio * score(x, other)

    return shifted


@functools.cache
def draw(protocol: Protocol) -> np.ndarray:
    """Return the samples of a protocol in the range of the model, float32 (count, H, W, C).

    Attributes that do not concern the sampler must have their defaults, so that equal samples are
    drawn once.
    """
    experiment = experiment_of(protocol.network, protocol.fields)
    _, ema, last = network(protocol.network)
    sde = sampling_sde(experiment, protocol)
    sampler = factory.make_sampler(experiment.config, sde)

    @jax.jit
    def run(params: Params, indices: Array) -> Array:
        score = experiment.score(params)
        if protocol.late:
            score = late_score(score, sde, protocol.late)
        keys = sampling.image_keys(experiment.key("sample"), indices)
        prior = sampling.prior_sample(keys, sde, (len(indices), *experiment.image_shape))
        return sampler(keys, score, prior).x

    numbers = np.arange(protocol.count).reshape(-1, BATCH_SIZE)
    params = ema if protocol.average else last
    return np.concatenate([np.asarray(run(params, each)) for each in numbers])


def sampler_part(protocol: Protocol) -> Protocol:
    """Return the protocol with only what concerns the sampler."""
    names = ("network", "count", "fields", "average", "t_end", "linear_levels", "late")
    return Protocol(**{name: getattr(protocol, name) for name in names})


# --- distances ---


@functools.cache
def extractor(name: str) -> features.Extractor:
    """Return the classifier of a network's data set."""
    folder = Path(flags.FLAGS.results).parent / name.partition("_")[0]
    return features.make_extractor(experiment_of(name, (("eval.features", "classifier"),)), folder)


def same_data(name: str) -> str:
    """Return the network of zoo/ with the data set of a network."""
    return CLOTHES.network if name == CLOTHES.network else SOLVER.network


def sample_features(protocol: Protocol) -> np.ndarray:
    """Return the features of the samples (N, D)."""
    experiment = experiment_of(protocol.network, protocol.fields)
    images = ROUNDINGS[protocol.rounding](experiment, draw(sampler_part(protocol)))
    return extractor(same_data(protocol.network)).extract(FILES[protocol.file](images)).pool


@functools.cache
def reference(name: str, split: str, file: str, most: int | None) -> Moments:
    """Return the moments of the images to compare with; see `Protocol`."""
    experiment = experiment_of(name, ())
    images: Images = experiment.train if split == "train" else experiment.test
    pixels = features.as_samples(
        experiment, np.asarray(images.pixels[np.arange(len(images))][:most])
    )
    return Moments.from_features(extractor(name).extract(FILES[file](pixels)).pool)


def reference_of(protocol: Protocol) -> Moments:
    """Return the moments that a protocol compares with."""
    name = same_data(protocol.network)
    return reference(name, protocol.split, protocol.split_file, protocol.most)


def distance(pool: np.ndarray, moments: Moments) -> float:
    """Return the Frechet distance of features (N, D)."""
    return frechet_distance(Moments.from_features(pool), moments)


def measure(cause: Cause) -> parts.Record:
    """Return both distances, and their difference with its standard error."""
    wrong, right = ((sample_features(p), reference_of(p)) for p in (cause.wrong, cause.right))

    def difference(keep: np.ndarray) -> float:
        return distance(wrong[0][keep], wrong[1]) - distance(right[0][keep], right[1])

    groups = np.arange(len(right[0])) % JACKKNIFE_GROUPS
    full = difference(groups >= 0)
    without = [difference(groups != group) for group in range(JACKKNIFE_GROUPS)]
    return {
        "wrong": distance(*wrong),
        "right": distance(*right),
        "difference": full,
        "stderr": jackknife(full, without).stderr,
    }


def measure_number(protocol: Protocol, number: int) -> parts.Record:
    """Return the mean distance of disjoint sets of `number` samples, and its standard error.

    With one set only, the error is that of the jackknife.
    """
    pool, moments = sample_features(protocol), reference_of(protocol)
    sets = len(pool) // number
    found = [distance(pool[i * number : (i + 1) * number], moments) for i in range(sets)]
    error = float(np.std(found, ddof=1) / np.sqrt(sets)) if sets > 1 else None
    return {"value": float(np.mean(found)), "stderr": error, "sets": sets}


# --- results ---


def results(records: parts.Records, causes: Sequence[Cause] = CAUSES) -> list[parts.Record]:
    """Return the record of each cause; measure those that are missing."""
    found = []
    for cause in causes:
        key = f"{cause.wrong} / {cause.right} / {identity(cause.right.network)}"
        if records.is_missing(key):
            records.add(key, measure(cause))
            print(
                f"{cause.right.network}, {cause.group}, {cause.name}: {records.results[key]}",
                flush=True,
            )
        found.append(records.results[key])
    return found


def numbers(records: parts.Records) -> list[parts.Record]:
    """Return the record of each number of samples; measure those that are missing."""
    found = []
    for protocol in (SOLVER, CLOTHES):
        for number in sorted({*NUMBERS, protocol.count}):
            key = f"{number} samples of {protocol} / {identity(protocol.network)}"
            if records.is_missing(key):
                about = {"network": protocol.network, "number": number}
                records.add(key, about | measure_number(protocol, number))
            found.append(records.results[key])
    return found


def main() -> None:
    """Measure what is missing, and print the tables or write them to the page."""
    given = flags.FLAGS
    records = parts.Records(given.results)
    text = wrong_fid_page.tables(results(records), numbers(records))
    print(text)
    if given.write:
        PAGE.write_text(markdown.set_section(PAGE.read_text(), "causes", text))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The workdir of the digits.", required=True)
    flags.DEFINE_string(
        "results", str(Path(".cache") / "wrong_fid.jsonl"), "The file of results, one per line."
    )
    flags.DEFINE_bool("write", False, "Write the tables to docs/reproduce.md.")
    comparison.run(main)
