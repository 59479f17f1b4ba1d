"""Dependence of the measures of image quality on the number of images.

python -m benchmarks.metrics --workdir=DIR

Prints the table of docs/metrics.md. Held-out digits take the place of samples; they are compared
with the training digits, in features of the small classifier.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.markdown import header, row
from configs.vp import digits_ddpmpp_continuous
from experiment import Experiment
from metrics import features, reference_statistics, sample_quality

COUNTS = (60, 120, 240, 359)  # images
DRAWS = 20  # random subsets of each size
COLUMNS = {
    "FD": ("frechet", "value"),
    "stderr of FD": ("frechet", "stderr"),
    "extrapolated": ("frechet", "extrapolated"),
    "KID": ("kid", "value"),
    "stderr of KID": ("kid", "stderr"),
    "class. score": ("inception_score", "value"),
    "precision": ("precision", "value"),
    "recall": ("recall", "value"),
    "stderr of recall": ("recall", "stderr"),
}

flags.DEFINE_string("workdir", None, "The folder of classifier and statistics.", required=True)


def main(argv: list[str]) -> None:
    """Print the table: mean and standard deviation over the draws."""
    del argv
    experiment = Experiment(digits_ddpmpp_continuous.get_config())
    workdir = flags.FLAGS.workdir
    extractor = features.make_extractor(experiment, workdir)
    reference = reference_statistics.load_or_compute(experiment, extractor, workdir)
    found = extractor.extract(features.as_samples(experiment, np.asarray(experiment.test.pixels)))
    if found.logits is None:
        raise ValueError("The classifier of the config must return logits.")
    rng = np.random.default_rng(0)
    path = Path(workdir) / "drawn.npz"
    lines = header("images", *COLUMNS)
    for count in COUNTS:
        measured = []
        for _ in range(DRAWS):
            drawn = rng.choice(len(found.pool), count, replace=False)
            np.savez(path, pool=found.pool[drawn], logits=found.logits[drawn])
            results = sample_quality.measure([path], extractor, reference)
            measured.append([results[name][key] for name, key in COLUMNS.values()])
        means, stds = np.mean(measured, 0), np.std(measured, 0, ddof=1)
        lines.append(
            row(str(count), *(f"{mean:.3f} ({std:.3f})" for mean, std in zip(means, stds)))
        )
    path.unlink()
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main)
