"""What the studies share: trained networks, keys of results, errors and verdicts, and pages."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import importlib
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from scipy import stats

import datasets
import score_sde
import training
from api.conditional import NetworkScore
from benchmarks import tables
from configs.default import Config, complete
from errors import InputError
from score_sde import TrainedModel
from sde_lib import VESDE, VPSDE, SubVPSDE

ROOT = Path(__file__).parents[1]
SDES = {"VE": VESDE(), "VP": VPSDE(), "sub-VP": SubVPSDE()}
WITHOUT_EFFECT = ("runs", "benchmarks", "evaluation")
"""Modules whose code does not change what is trained or measured."""

# --- keys -----------------------------------------------------------------------------------------


def key(value: Any, module: str) -> str:
    """Return the hash of a value that JSON can store and of the code of a module.

    The code is that of the module and of all that it imports from this repository, except for
    WITHOUT_EFFECT; comments and docstrings do not count. So a result is used only with the present
    config and code: stale ones stay in their files under old keys.
    """
    text = json.dumps(value, sort_keys=True, default=list) + _code(module)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@functools.cache
def _code(module: str) -> str:
    """Return the hash of the code of a module and its imports."""
    found = {name: ast.dump(tree) for name, (_, tree) in sources(module).items()}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def sources(module: str) -> dict[str, tuple[Path, ast.Module]]:
    """Return the files of a module and of what it imports, with their code without docstrings."""
    found, waiting = {}, [module]
    while waiting:
        name = waiting.pop()
        base = ROOT / name.replace(".", "/")
        files = [each for each in (Path(f"{base}.py"), base / "__init__.py") if each.is_file()]
        if not files or name in found or name.partition(".")[0] in WITHOUT_EFFECT:
            continue
        tree = without_text(files[0].read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                waiting += [each.name for each in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        waiting.append(name.rpartition(".")[0])
        found[name] = files[0], tree
    if not found:
        raise ValueError(f"{module} is not a module of this repository.")
    return found


def without_text(code: str) -> ast.Module:
    """Return parsed code without comments and docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return tree


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


# --- networks -------------------------------------------------------------------------------------


def train(config: Config, folder: Path) -> Path:
    """Train the network of a config, unless it is; return its workdir, named by config and code.

    Raises KeyboardInterrupt if training was stopped; the next call continues it.
    """
    workdir = folder / "networks" / key(config.to_dict(), "training")
    finished = workdir.with_suffix(".finished")
    if not finished.exists():
        state, chosen = training.train(config, str(workdir)), config.training
        if int(state.step) < training.last_step(0, chosen.n_iters, chosen.n_jitted_steps):
            raise KeyboardInterrupt
        finished.touch()
    return workdir


@functools.cache
def load(path: Path | str, checkpoint: int | None = None) -> TrainedModel:
    """Load a workdir or a network of zoo/, such as "zoo/digits_vp.safetensors".

    Models whose configs differ in the seed only share their compiled programs: parameters are an
    argument of their score.
    """
    model = score_sde.load(path, checkpoint=checkpoint)
    about = json.dumps(model.config.to_dict() | {"seed": 0}, sort_keys=True, default=list)
    shared = _scores.setdefault(about, model.score)
    model.score = dataclasses.replace(shared, params=model.params)
    return model


_scores: dict[str, NetworkScore] = {}
"""A score by its config."""


def digits_network(name: str, folder: Path) -> TrainedModel:
    """Return the network of a config of digits, trained without a warm-up of its average."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.model.ema_ramp = False
    return load(train(complete(config), folder))


@functools.cache
def images(model: TrainedModel, split: str) -> datasets.Images:
    """Return the images of a model's data set, of the split 'train' or 'test'."""
    return datasets.load(model.config.data, split)


# --- errors and verdicts --------------------------------------------------------------------------

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
LEVEL = 0.05  # of a test, for either side
AS_GOOD = 0.9  # the margin of ratios for "as good"


class Estimate(NamedTuple):
    """A number and its standard error.

    A distance to images has two more fields: its `floor`, where training images are, and the
    distances to `resampled` images.
    """

    value: float
    stderr: float
    floor: float = 0.0
    resampled: Sequence[float] = ()

    def __str__(self) -> str:
        """Return the number and its error with two digits of the error, if it is known."""
        if not self.stderr or math.isnan(self.stderr):
            return f"{self.value:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.stderr)))
        return f"{self.value:.{digits}f} +- {self.stderr:.{digits}f}"

    def brief(self) -> str:
        """Return 0.123(45) for 0.123 +- 0.045."""
        value, *error = str(self).split(" +- ")
        return value + "".join(f"({each.lstrip('0.')})" for each in error)


def mean(values: np.ndarray) -> Estimate:
    """Return the mean of independent values (n,), and its standard error."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def excess(distance: Estimate, floor: Estimate) -> Estimate:
    """Return (distance^2 - floor^2)^(1/2), or 0 if the distance is smaller, and its error.

    The error is that of the square, to first order, or its root where that is smaller.
    """
    root = math.sqrt(max(distance.value**2 - floor.value**2, 0.0))
    error = 2 * math.hypot(distance.value * distance.stderr, floor.value * floor.stderr)
    return Estimate(root, error / max(2 * root, math.sqrt(error) or 1.0))


def log_ratio(a: Estimate, b: Estimate) -> Estimate:
    """Return log(a / b) of positive numbers with independent errors, to first order.

    Distances to the same resampled images are not independent; their ratios are `resampled`.
    """
    error = math.hypot(a.stderr / a.value, b.stderr / b.value)
    resampled = [math.log(x / y) for x, y in zip(a.resampled, b.resampled)]
    return Estimate(math.log(a.value / b.value), error, resampled=resampled)


def combine(seeds: Sequence[Estimate]) -> Estimate:
    """Return the mean over seeds, with the error of this mean.

    Its square is the variance over the seeds, which contains that of their samples, divided by
    their number, and that of a single seed is its own. Held-out images are the same for all seeds;
    their variance is added where it is known.
    """
    values = np.array([each.value for each in seeds])
    variance = values.var(ddof=1) / len(seeds) if len(seeds) > 1 else seeds[0].stderr ** 2
    resampled = np.mean([each.resampled for each in seeds], 0)
    if resampled.size:
        variance += resampled.var(ddof=1)
    return Estimate(float(values.mean()), math.sqrt(variance), seeds[0].floor, list(resampled))


def judge(estimate: Estimate, margin: float, seeds: int) -> tuple[str, float]:
    """Return whether a number is larger than a margin, and p for the side that it is on.

    This is a t-test with an error from `seeds` values; that of one is taken for known.
    """
    shift = estimate.value - margin
    shift *= 1 / estimate.stderr if estimate.stderr else math.inf
    p = float(stats.t.sf(abs(shift), seeds - 1 if seeds > 1 else math.inf))
    return (UNKNOWN if not p <= LEVEL else HOLDS if shift > 0 else FAILS), p


def judge_ratio(
    upper: Sequence[Estimate], lower: Sequence[Estimate], margin: float
) -> tuple[str, str, float]:
    """Return the mean ratio of what exceeds the floor, as text, and the verdict and p of `judge`.

    Distances are those of each seed. Other numbers have no floor.
    """
    found, base = combine([log_ratio(*pair) for pair in zip(upper, lower)]), combine(lower)
    share = (base.floor / base.value) ** 2
    limit = 0.5 * math.log(margin**2 + (1 - margin**2) * share)
    return ratio_above_floor(found, share), *judge(found, limit, len(upper))


def ratio_above_floor(ratio: Estimate, share: float) -> str:
    """Return the ratio of what exceeds a floor, as the roots of differences of squares.

    `ratio` is the logarithm of that of the distances, `share` the square of the floor relative to
    the distance that is the divisor. Verdicts compare distances: a / b is larger than
    (m^2 + (1 - m^2) share)^(1/2) if this ratio is larger than m.
    """
    square = math.exp(2 * ratio.value)
    if min(square, 1) <= share:
        return "at the floor"
    found = math.sqrt((square - share) / (1 - share))
    return Estimate(found, square * ratio.stderr / (1 - share) / found).brief()


def holm(p: Sequence[float]) -> float:
    """Return the largest of these p that is significant at LEVEL by Holm's correction, or 0."""
    found = sorted(p)
    kept = itertools.takewhile(lambda i: found[i] <= LEVEL / (len(found) - i), range(len(found)))
    return max((found[i] for i in kept), default=0.0)


# --- commands and pages ---------------------------------------------------------------------------


def run(
    main: Callable[[argparse.Namespace], Any], options: Mapping[str, Any], page: str = ""
) -> None:
    """Call `main` with the options of the command line; an InputError prints a line, exit code 1.

    `options` are their defaults, which state their types: False for a switch, '' for a string that
    is required, None for one that is not, and a list for positional arguments. For a page of docs/,
    `main` returns its generated blocks, by name: they are printed with their provenance, and with
    --write put into the page.
    """
    parser = argparse.ArgumentParser()
    for name, default in options.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(default, list):
            parser.add_argument(name, nargs="*")
        else:
            kind = str if default is None else type(default)
            parser.add_argument(f"--{name}", type=kind, default=default, required=default == "")
    logging.set_verbosity(logging.WARNING)
    given = parser.parse_args()
    try:
        blocks = main(given)
    except InputError as error:
        sys.exit(f"Error: {error}")
    if page:
        spec = sys.modules["__main__"].__spec__
        about = provenance(command(spec.name if spec else page, options, vars(given)))
        blocks = {name: [about, "", *lines] for name, lines in blocks.items()}
        publish(page, blocks, write=given.write)


def command(module: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the command that runs a module with options that differ from their defaults.

    Paths are DIR.
    """
    words = ["python -m", module]
    for name, default in options.items():
        if isinstance(default, list):
            words += given[name]
        elif given[name] != default:
            is_path, is_switch = default is None or default == "", isinstance(default, bool)
            value = "DIR" if is_path else given[name]
            words.append(f"--{name}" if is_switch else f"--{name}={value}")
    return " ".join(words)


def provenance(command: str) -> str:
    """Return a sentence with the command, the commit and the machine of a measurement.

    The commit is called dirty if files differ from it; those of docs/, where results go, may.
    """
    git = functools.partial(subprocess.run, capture_output=True, text=True, cwd=ROOT)
    commit = git(["git", "describe", "--always"]).stdout.strip() or "unknown"
    if git(["git", "diff", "--quiet", "HEAD", "--", ":!docs"]).returncode == 1:
        commit += "-dirty"
    return f"Measured by `{command}` at commit {commit}, on {tables.machine()}."


def publish(page: str, blocks: Mapping[str, Sequence[str]], *, write: bool) -> None:
    """Print generated blocks of a page of docs/, by name, and write them if told to."""
    print("\n".join(line for lines in blocks.values() for line in lines))
    if write:
        write_blocks(ROOT / "docs" / page, blocks)


def write_blocks(page: Path, blocks: Mapping[str, Sequence[str]]) -> None:
    """Replace generated blocks of a page, by name; what is between them stays."""
    text = page.read_text() if page.exists() else ""
    for name, lines in blocks.items():
        text = tables.set_block(text, name, "\n".join(lines))
    page.write_text(text)
    print(f"written: {page}")
