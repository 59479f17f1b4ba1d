"""Measure the paper's claims on small real data, and write the tables of docs/claims.md.

python -m studies.claims --folder=DIR [--claim=3,6] [--seeds=6]

It takes hours on two cores. A run that is stopped resumes from DIR. This file has the nine claims:
what each compares, with margins and the figures of the paper.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from errors import InputError
from studies import claims_measured, common
from studies.claims_study import (
    OTHER_DATA,
    SAMPLES,
    Check,
    Estimates,
    Study,
    larger,
    smaller,
    summary,
    table,
)
from studies.common import AS_GOOD
from studies.table1 import FID, PREDICTORS, SNR, STEPS

OPTIONS = {"folder": "", "claim": "1,2,3,4,5,6,7,8,9", "seeds": 6}
PAGE = common.ROOT / "docs" / "claims.md"
REFERENCE = 1000  # steps of the predictor and corrector beside few-step solvers
LONG, LONG_ELSEWHERE = 500, 200  # images drawn for this comparison; the latter of other data
GUIDED = 250  # images of classes that are drawn with guidance
CLASSIFIER = 500  # training steps of the classifier of noised images
IMAGES = 100  # held-out images of the other measurements
FEW = 8  # images of measurements with the larger networks of zoo/
TOLERANCES = (1e-5, 1e-3, 1e-1)
LOW = 0.8  # temperature
ZOO = {"VP": "digits", "zoo/fashion_vp": "Fashion-MNIST", "zoo/emoji_vp": "emoji"}
"""The data of networks that are compared on several data sets."""
ALL_DATA = ("", *OTHER_DATA)
"""Ends of the names of networks; that of the digits is empty."""
CASES = dict(zip(STEPS, (ALL_DATA, ALL_DATA[:1])))
"""The data that samplers with these steps are compared on."""
COARSE = "VP", STEPS[0]  # outside of the grid that the chain of VP was trained on
ABLATIONS = {
    "no FIR filter": "a FIR filter for resampling",
    "no rescaled skips": "skip connections rescaled by 1 / sqrt(2)",
    "DDPM's blocks": "residual blocks of BigGAN in place of DDPM's",
    "no progressive input": "progressive input",
}
Checks = Iterator[Check]


# --- 1 to 3: samplers -----------------------------------------------------------------------------


def _cell(study: Study, steps: int, network: str, name: str, kind: str) -> Estimates:
    """Return the distances of a cell of Table 1: P, P2 with twice the steps, C or PC."""
    options: dict[str, Any] = {"sampler": "pc", **PREDICTORS[name], "corrector": "none"}
    options["steps"] = steps * (2 if kind in ("P2", "C") else 1)
    if kind == "C":
        options |= {"predictor": "none", "probability_flow": False}
    if kind not in ("C", "PC"):
        return study.distances(network, **options)
    title = f"{network}, {kind if kind == 'C' else name}, {steps}"
    return study.tuned_distances(network, title, **options | {"corrector": "langevin"})


def predictor_corrector(study: Study) -> Checks:
    """Table 1: predictor and corrector against either alone."""
    for n in STEPS:
        for title, kind, column in (("P", "P2", 1), ("C", "C", 2)):
            text = f"PC{n} is better than {title}{2 * n}"
            cells = [(sde, name, data) for data in CASES[n] for sde in FID for name in PREDICTORS]
            for sde, name, data in cells:
                fid, network = FID[sde][name], sde + data
                own = _cell(study, n, network, name, "PC")
                predictor = name if kind == "P2" else "reverse diffusion"
                other = _cell(study, n, network, predictor, kind)
                case = f"{network}, {name.removesuffix(' sampling').removeprefix('probability ')}"
                paper = f"{fid[3]:.2f}, {fid[column]:.2f}"
                yield smaller(text, case, paper, own, other, is_weak=(sde, n) == COARSE)


def predictors(study: Study) -> Checks:
    """Table 1: predictors alone, with n steps or 2 n."""
    ancestral, reverse, flow = PREDICTORS
    for first, second in ((reverse, ancestral), (flow, ancestral), (flow, reverse)):
        text = f"{first} is {'as good as' if first == reverse else 'worse than'} {second}"
        sdes = FID if first == reverse else ["VE"]
        cells = [(n, each, data) for n in STEPS for each in (0, 1) for data in CASES[n]]
        for n, twice, data in cells:
            for sde in sdes:
                kind, case = ("P", "P2")[twice], f"{sde}{data}, P{n * (1 + twice)}"
                own, other = (_cell(study, n, sde + data, name, kind) for name in (first, second))
                paper = ", ".join(f"{FID[sde][name][twice]:.2f}" for name in (first, second))
                if first == reverse:
                    weak = (sde, n) == COARSE
                    yield smaller(text, case, paper, own, other, AS_GOOD, is_weak=weak)
                else:
                    yield larger(text, case, paper, own, other)


def black_box_ode(study: Study) -> Checks:
    at: dict[str, list[dict[str, Estimates]]] = {
        name: [
            study.measure(claims_measured.flow, name, count=count, tolerance=each)
            for each in TOLERANCES
        ]
        for name, count in (("VP", SAMPLES), ("zoo/fashion_vp", FEW))
    }
    for name, found in at.items():
        data, (fine, middle, coarse) = ZOO[name], (each["evaluations"] for each in found)
        yield larger("1e-5 needs more evaluations than 1e-3", data, "548, 86", fine, middle)
        yield larger("1e-3 needs more evaluations than 1e-1", data, "86, 14", middle, coarse)
        text = "1e-3 needs less than a fifth of 1,000 evaluations"
        yield Check(text, data, "86", found[1]["saving"], margin=5.0)
    fine, middle, coarse = (each["distance"] for each in at["VP"])
    same, worse = "visually the same", "visibly worse"
    yield smaller("1e-3 is as good as 1e-5", "digits", same, middle, fine, AS_GOOD)
    yield larger("1e-1 is worse than 1e-5", "digits", worse, coarse, fine)
    for n in STEPS:
        fixed = _cell(study, n, "VP", "probability flow", "P2")
        text = f"1e-3 is as good as {2 * n} steps of fixed length"
        weak = ("VP", n) == COARSE
        yield smaller(text, "digits", "3.69, 3.59", middle, fixed, AS_GOOD, is_weak=weak)


# --- 4 and 5: networks ----------------------------------------------------------------------------


def _gain(
    study: Study, text: str, case: str, paper: str, networks: tuple[str, str], bound: bool = False
) -> Check:
    """Return the check that the second network has fewer bits/dim, or a smaller `bound`."""
    found = study.measure(claims_measured.gain, *networks, count=IMAGES)
    names = ("gain of the bound", "bound after", "bound before")
    gain, *shown = (found[name] for name in (names if bound else ("gain", "after", "before")))
    return Check(text, case, paper, gain, margin=0.0, more=tuple(shown))


def _named(end: str) -> str:
    """Return the data of the end of the name of a network."""
    return end.removeprefix(", ") or "digits"


def likelihoods(study: Study) -> Checks:
    papers = {"likelihood weighting": "2.83 (arXiv:2101.09258)", "sub-VP": "3.02, 3.16"}
    ends = ("", ", longer", *OTHER_DATA)
    for name, paper in papers.items():
        for bound in (False, True):
            text = f"{name} has {'a smaller bound' if bound else 'fewer bits/dim'} than VP"
            for end in ends:
                pair, known = (f"VP{end}", f"{name}{end}"), "" if bound else paper
                yield _gain(study, text, _named(end), known, pair, bound)


def networks(study: Study) -> Checks:
    pairs = (
        ("VP", "DDPM++ discrete", "continuous training of DDPM++ (VP)", "2.55, 2.78"),
        ("VE", "NCSN++ discrete", "continuous training of NCSN++ (VE)", "2.38, 2.45"),
        ("DDPM++ discrete", "DDPM", "DDPM++ in place of DDPM", "2.78, 3.17"),
        ("NCSN++ discrete", "NCSNv2", "NCSN++ in place of NCSNv2", "2.45, 10.87"),
    )
    for better, worse, text, fid in pairs:
        for data in ALL_DATA:
            own, other = (study.distances(name + data) for name in (better, worse))
            yield smaller(f"better: {text}", _named(data), fid, own, other)
    for name, part in {**ABLATIONS, "twice the blocks": "twice as many residual blocks"}.items():
        for data in ALL_DATA:
            pair = study.distances(f"VE{data}", 1), study.distances(name + data)
            own, other = pair if name in ABLATIONS else pair[::-1]
            text = f"better: NCSN++ with {part}"
            yield smaller(text, _named(data), "Appendix H", own, other, is_weak=True)


# --- 6 to 8: codes and conditional generation -----------------------------------------------------


def encodings(study: Study) -> Checks:
    cases = [("VP", ""), *(("DDPM continuous", data) for data in ALL_DATA)]
    text = "codes of an image are less than half as far apart as those of two images"
    for name, data in cases:
        pair = f"VP{data}", f"{name}{data}"
        found = study.measure(claims_measured.codes, *pair, shift=1, count=IMAGES)
        case = f"VP and {name}, {_named(data)}"
        pair, sizes = (found["same"], found["other"]), (found["size"], found["other size"])
        yield smaller(text, case, "", *pair, 2.0, more=sizes)


def manipulation(study: Study) -> Checks:
    between, heat = claims_measured.interpolation, claims_measured.temperature
    halfway = "images halfway between two codes are closer to data than means of two images"
    ends = "both ends of an interpolation differ by more than twice the largest of 9 steps"
    varied = f"codes times {LOW} give less varied images"
    counts = {name: IMAGES if name == "VP" else 4 * FEW for name in ZOO}
    for compare, text, function, own, other, margin in (
        (smaller, halfway, between, "codes", "pixels", 1.0),
        (larger, ends, between, "ends", "step", 2.0),
        (smaller, varied, heat, "spread at low", "spread", 1.0),
    ):
        for name, count in counts.items():
            options: dict[str, Any] = {"low": LOW} if function == heat else {}
            found = study.measure(function, name, count=count, **options)
            yield compare(text, ZOO[name], "Figure 3", found[own], found[other], margin)
    same = study.measure(heat, "VP", count=IMAGES, low=LOW)["kept"]
    text = f"codes times {LOW} keep the class of 4 of 5"
    yield Check(text, "digits", "pictures", same, margin=0.8)


def conditions(study: Study) -> Checks:
    figure = "Figure 4"
    options = {"count": GUIDED, "iterations": CLASSIFIER, "strength": 4.0}
    correct = study.measure(claims_measured.guided, "VP", **options)["correct"]
    text = "4 of 5 guided samples are of the requested class (chance: 1 in 10)"
    yield Check(text, "digits", figure, correct, margin=0.8)
    text = "inpainting has a smaller error than samples without a measurement"
    found: dict[str, dict[str, Estimates]] = {}
    for name, data in ZOO.items():
        count = IMAGES if name == "VP" else FEW
        found[name] = study.measure(claims_measured.inpainting, name, count=count)
        pair = found[name]["solutions"], found[name]["samples"]
        yield smaller(text, data, "pictures", *pair, 1.1)
    text = "inpainting keeps the class more often than a gray box"
    yield larger(text, "digits", "", found["VP"]["kept"], found["VP"]["grey"])
    color = study.measure(claims_measured.colorization, "zoo/emoji_vp", count=3 * FEW)
    text = "colors are closer to the true ones than those of another emoji"
    yield smaller(text, "emoji", figure, color["solutions"], color["others"], 1.1)
    text = "colors are at least half as strong as the true ones"
    yield larger(text, "emoji", figure, color["color"], color["true color"], 0.5)


# --- 9: later work --------------------------------------------------------------------------------


def later_work(study: Study) -> Checks:
    for data in ALL_DATA:
        count = LONG_ELSEWHERE if data else LONG
        options: dict[str, Any] = {"sampler": "pc", "corrector": "langevin", "count": count}
        options |= {"predictor": "reverse_diffusion", "steps": REFERENCE}
        for sde in ("VP", "VE", "sub-VP"):
            pc = study.distances(sde + data, snr=SNR[sde], **options)
            few = study.distances(sde + data, count=count)
            text = f"20 evaluations are as good as PC with {2 * REFERENCE:,}"
            yield smaller(text, sde + data, "", few, pc, AS_GOOD)
    for name in ("EDM", "rectified flow"):
        for data in ALL_DATA:
            vp, own = (study.distances(each + data) for each in ("VP", name))
            text = f"{name} is as good as VP with 20 evaluations"
            yield smaller(text, _named(data), "", own, vp, AS_GOOD)
        for data in ALL_DATA:
            pair = f"VP{data}", name + data
            yield _gain(study, f"{name} has fewer bits/dim than VP", _named(data), "", pair)


CLAIMS: dict[str, Callable[[Study], Checks]] = {
    "Predictor-corrector sampling": predictor_corrector,
    "Predictors": predictors,
    "The black-box ODE sampler": black_box_ode,
    "Likelihoods": likelihoods,
    "Training and architectures": networks,
    "Unique encodings": encodings,
    "Interpolation and temperature": manipulation,
    "Conditional generation": conditions,
    "Later work: few-step solvers, EDM and rectified flow": later_work,
}
"""title -> (study) -> its checks, in the order of their numbers."""


def main(options: argparse.Namespace) -> None:
    """Train, measure and write the tables of the chosen claims, and the summary of all."""
    folder, chosen = Path(options.folder), options.claim.split(",")
    numbered = {str(number): make for number, make in enumerate(CLAIMS.values(), 1)}
    if not set(chosen) <= numbered.keys():
        raise InputError(f"--claim={options.claim}: the claims are 1 to {len(CLAIMS)}.")
    if options.seeds < 1:
        raise InputError(f"--seeds={options.seeds} must be at least 1.")
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    for number in chosen:
        study = Study(folder, range(options.seeds))
        lines = table(numbered[number](study))
        about = common.provenance(f"python -m studies.claims --folder=DIR --claim={number}")
        floors = ", ".join(f"{each:.4f} ({data})" for data, each in study.floors.items())
        about += f" Networks: {options.seeds} (digits), 1 (others). Floors: {floors or 'none'}."
        tuned = ", ".join(f"{snr} ({title})" for title, snr in study.tuned.items())
        about += f" Tuned ratios of signal to noise: {tuned}." if tuned else ""
        common.write_blocks(PAGE, {f"claim {number}": [about, "", *lines]})
    common.write_blocks(PAGE, {"summary": summary(PAGE.read_text(), list(CLAIMS))})


if __name__ == "__main__":
    common.run(main, OPTIONS)
