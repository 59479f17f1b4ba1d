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
from studies.claims_checks import (
    AS_GOOD,
    SAMPLES,
    Check,
    Estimates,
    Study,
    larger,
    smaller,
    summary,
    table,
)
from studies.claims_networks import OTHER_DATA

OPTIONS = {"folder": "", "claim": "1,2,3,4,5,6,7,8,9", "seeds": 6}  # Each half has three.
PAGE = common.ROOT / "docs" / "claims.md"
STEPS = (50, 250)  # of P and PC; the paper has 1,000, the digits' configs 250
REFERENCE = 1000  # steps of the predictor and corrector beside few-step solvers
LONG, LONG_ELSEWHERE = 500, 200  # images drawn for this comparison; the latter of other data
GUIDED = 250  # images of classes that are drawn with guidance
CLASSIFIER = 500  # training steps of the classifier of noised images
IMAGES = 100  # held-out images of the other measurements
FEW = 8  # images of measurements with the larger networks of zoo/
SNR = {"VE": 0.16, "VP": 0.01, "sub-VP": 0.01}  # of the Langevin corrector after a predictor
CORRECTOR_SNR = 0.16  # of the corrector alone
TOLERANCES = (1e-5, 1e-3, 1e-1)
LOW = 0.8  # temperature
ZOO = {"VP": "digits", "zoo/fashion_vp": "Fashion-MNIST", "zoo/emoji_vp": "emoji"}
"""The data of networks that are compared on several data sets."""
ALL_DATA = ("", *OTHER_DATA)
"""Ends of the names of networks; that of the digits is empty."""
PREDICTORS: dict[str, dict[str, Any]] = {
    "ancestral sampling": {"predictor": "ancestral_sampling"},
    "reverse diffusion": {"predictor": "reverse_diffusion"},
    "probability flow": {"predictor": "reverse_diffusion", "probability_flow": True},
}
FID = {  # P1000, P2000, C2000 and PC1000 of Table 1
    "VE": {
        "ancestral sampling": (4.98, 4.88, 20.43, 3.62),
        "reverse diffusion": (4.79, 4.74, 20.43, 3.60),
        "probability flow": (15.41, 10.54, 20.43, 3.51),
    },
    "VP": {
        "ancestral sampling": (3.24, 3.24, 19.06, 3.21),
        "reverse diffusion": (3.21, 3.19, 19.06, 3.18),
        "probability flow": (3.59, 3.23, 19.06, 3.06),
    },
}
ABLATIONS = {
    "no FIR filter": "a FIR filter for resampling",
    "no rescaled skips": "skip connections rescaled by 1 / sqrt(2)",
    "DDPM's blocks": "residual blocks of BigGAN in place of DDPM's",
    "no progressive input": "progressive input",
}
Checks = Iterator[Check]


# --- 1 to 3: samplers -----------------------------------------------------------------------------


def _cases() -> list[tuple[int, str]]:
    """Return the numbers of steps and the data they are used for: all for the digits."""
    return [(n, "") for n in STEPS] + [(STEPS[0], data) for data in OTHER_DATA]


def _cell(study: Study, steps: int, network: str, name: str, kind: str) -> Estimates:
    """Return the distances of a cell of Table 1: P, P2 with twice the steps, C or PC."""
    options: dict[str, Any] = {"sampler": "pc", **PREDICTORS[name], "corrector": "none"}
    options["steps"] = steps * (2 if kind in ("P2", "C") else 1)
    if kind == "C":
        options |= {"predictor": "none", "probability_flow": False}
    if kind in ("C", "PC"):
        snr = CORRECTOR_SNR if kind == "C" else SNR[network.partition(",")[0]]
        options |= {"corrector": "langevin", "snr": snr}
    return study.distances(network, **options)


def predictor_corrector(study: Study) -> Checks:
    """Table 1: predictor and corrector against either alone."""
    for n, data in _cases():
        for sde, rows in FID.items():
            for name, (_, p2000, c2000, pc1000) in rows.items():
                own = _cell(study, n, sde + data, name, "PC")
                others = {"P": (name, "P2", p2000), "C": ("reverse diffusion", "C", c2000)}
                for title, (predictor, kind, fid) in others.items():
                    text = f"{sde}{data}, {name}: PC{n} is better than {title}{2 * n}"
                    other = _cell(study, n, sde + data, predictor, kind)
                    yield smaller(text, f"FID {pc1000:.2f} against {fid:.2f}", own, other)


def predictors(study: Study) -> Checks:
    """Table 1: predictors alone, with n steps ("P") or 2 n ("P2")."""
    ancestral, reverse, flow = PREDICTORS
    for n, data in _cases():
        for twice, kind in enumerate(("P", "P2")):
            for sde, rows in FID.items():
                found = {name: _cell(study, n, sde + data, name, kind) for name in PREDICTORS}
                start = f"{sde}{data}, P{n * (1 + twice)}"

                def paper(a: str, b: str, rows=rows, twice=twice) -> str:
                    return f"FID {rows[a][twice]:.2f} against {rows[b][twice]:.2f}"

                text = f"{start}: reverse diffusion is at least as good as ancestral sampling"
                fid = paper(reverse, ancestral)
                yield smaller(text, fid, found[reverse], found[ancestral], AS_GOOD)
                for other in (ancestral, reverse) if sde == "VE" else ():
                    text = f"{start}: probability flow is worse than {other}"
                    yield larger(text, paper(flow, other), found[flow], found[other])


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
        yield larger(f"{data}: 1e-5 needs more evaluations than 1e-3", "548 and 86", fine, middle)
        yield larger(f"{data}: 1e-3 needs more evaluations than 1e-1", "86 and 14", middle, coarse)
        text = f"{data}: 1e-3 needs less than a fifth of 1,000 evaluations"
        yield Check(text, "86", found[1]["saving"], margin=5.0)
    fine, middle, coarse = (each["distance"] for each in at["VP"])
    text = "digits: 1e-3 is as good as 1e-5"
    yield smaller(text, "visually the same", middle, fine, AS_GOOD)
    yield larger("digits: 1e-1 is worse than 1e-5", "visibly worse", coarse, fine)
    for n in STEPS:
        fixed = _cell(study, n, "VP", "probability flow", "P2")
        text = f"digits: 1e-3 is as good as {2 * n} steps of fixed length"
        paper = "FID 3.69 (Table 2) against 3.59 (P1000)"
        yield smaller(text, paper, middle, fixed, AS_GOOD)


# --- 4 and 5: networks ----------------------------------------------------------------------------


def _gain(study: Study, text: str, paper: str, networks: tuple[str, str], bound="") -> Check:
    """Return the check that the second network has fewer bits/dim, or a smaller `bound`."""
    found = study.measure(claims_measured.gain, *networks, count=IMAGES)
    names = ("gain of the bound", "bound after", "bound before")
    gain, *shown = (found[name] for name in (names if bound else ("gain", "after", "before")))
    return Check(text, paper, gain, 0.0, shown=tuple(shown))


def likelihoods(study: Study) -> Checks:
    papers = {
        "likelihood weighting": "not in Table 2; 2.83 in arXiv:2101.09258",
        "sub-VP": "3.02 against 3.16 (DDPM++ cont.)",
    }
    for end in ("", ", longer", *OTHER_DATA):
        for name, paper in papers.items():
            pair = f"VP{end}", f"{name}{end}"
            yield _gain(study, f"{name}{end}: fewer bits/dim than VP", paper, pair)
            text = f"{name}{end}: a smaller upper bound than VP"
            yield _gain(study, text, "not reported", pair, bound="bound")


def networks(study: Study) -> Checks:
    pairs = (
        ("VP", "DDPM++ discrete", "continuous training of DDPM++ (VP)", "FID 2.55 against 2.78"),
        ("VE", "NCSN++ discrete", "continuous training of NCSN++ (VE)", "FID 2.38 against 2.45"),
        ("DDPM++ discrete", "DDPM", "DDPM++ in place of DDPM", "FID 2.78 against 3.17"),
        ("NCSN++ discrete", "NCSNv2", "NCSN++ in place of NCSNv2", "FID 2.45 against 10.87"),
    )
    paper = "improves FID (Appendix H)"
    for data in ALL_DATA:
        for better, worse, text, fid in pairs:
            own, other = (study.distances(name + data) for name in (better, worse))
            yield smaller(f"{text} is better{data}", fid, own, other)
        plain, blocks = study.distances(f"VE{data}", 1), study.distances(f"twice the blocks{data}")
        parts = [(part, plain, study.distances(name + data)) for name, part in ABLATIONS.items()]
        for part, own, other in [*parts, ("twice as many residual blocks", blocks, plain)]:
            yield smaller(f"NCSN++ (VE) is better with {part}{data}", paper, own, other)


# --- 6 to 8: codes and conditional generation -----------------------------------------------------


def encodings(study: Study) -> Checks:
    cases = [("the same network with another seed", "VP", "VP")]
    another = "another network: DDPM, trained on discrete levels"
    cases += [(another + data, f"VP{data}", f"DDPM{data}") for data in ALL_DATA]
    for name, first, second in cases:
        found = study.measure(claims_measured.codes, first, second, shift=1, count=IMAGES)
        text = f"codes by {name}: less than half as far apart as those of other images"
        yield smaller(text, "nearly the same codes", found["same"], found["other"], 2.0)


def manipulation(study: Study) -> Checks:
    figure = "Figure 3, pictures"
    for name, data in ZOO.items():
        count = IMAGES if name == "VP" else 4 * FEW
        between = study.measure(claims_measured.interpolation, name, count=count)
        heat = study.measure(claims_measured.temperature, name, count=count, low=LOW)
        text = "images halfway between two codes are closer to data than means of two images"
        yield smaller(f"{data}: {text}", figure, between["codes"], between["pixels"])
        text = "both ends of an interpolation differ by more than twice the largest of 9 steps"
        yield larger(f"{data}: {text}", figure, between["ends"], between["step"], 2.0)
        text = f"{data}: codes times {LOW} give less varied images"
        yield smaller(text, "pictures", heat["spread at low"], heat["spread"])
    heat = study.measure(claims_measured.temperature, "VP", count=IMAGES, low=LOW)
    text = f"digits: codes times {LOW} keep the class of 4 of 5"
    yield Check(text, "pictures", heat["kept"], margin=0.8)


def conditions(study: Study) -> Checks:
    figure = "Figure 4, pictures"
    options = {"count": GUIDED, "iterations": CLASSIFIER, "strength": 4.0}
    correct = study.measure(claims_measured.guided, "VP", **options)["correct"]
    text = "digits: 4 of 5 guided samples are of the requested class (chance: 1 in 10)"
    yield Check(text, figure, correct, margin=0.8)
    for name, data in ZOO.items():
        count = IMAGES if name == "VP" else FEW
        found = study.measure(claims_measured.inpainting, name, count=count)
        text = f"{data}: inpainting has a smaller error than samples without a measurement"
        yield smaller(text, "pictures", found["solutions"], found["samples"], 1.1)
        if name == "VP":
            text = "digits: half of the inpainted ones are of the class of the original"
            yield Check(text, "pictures", found["kept"], margin=0.5)
    found = study.measure(claims_measured.colorization, "zoo/emoji_vp", count=3 * FEW)
    text = "emoji: colors are closer to the true ones than those of another emoji"
    yield smaller(text, figure, found["solutions"], found["others"], 1.1)
    text = "emoji: colors are at least half as strong as the true ones"
    yield larger(text, figure, found["color"], found["true color"], 0.5)


# --- 9: later work --------------------------------------------------------------------------------


def later_work(study: Study) -> Checks:
    paper = "not in the paper"
    for data in ALL_DATA:
        count = LONG_ELSEWHERE if data else LONG
        options: dict[str, Any] = {"sampler": "pc", "corrector": "langevin", "count": count}
        options |= {"predictor": "reverse_diffusion", "steps": REFERENCE}
        for sde in ("VP", "VE", "sub-VP"):
            pc = study.distances(sde + data, snr=SNR[sde], **options)
            few = study.distances(sde + data, count=count)
            text = f"{sde}{data}: 20 evaluations are as good as PC with {2 * REFERENCE:,}"
            yield smaller(text, paper, few, pc, AS_GOOD)
        for name in ("EDM", "rectified flow"):
            vp, own = (study.distances(each + data) for each in ("VP", name))
            text = f"{name} is as good as VP with 20 evaluations{data}"
            yield smaller(text, paper, own, vp, AS_GOOD)
            text = f"{name} has fewer bits/dim than VP{data}"
            yield _gain(study, text, paper, (f"VP{data}", name + data))


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
    study = Study(folder, range(options.seeds))
    for number in chosen:
        command = f"python -m studies.claims --folder=DIR --claim={number}"
        lines = table(list(numbered[number](study)))
        about = f"{common.provenance(command)} Seeds: {options.seeds}."
        common.write_blocks(PAGE, {f"claim {number}": [about, "", *lines]})
    common.write_blocks(PAGE, {"summary": summary(PAGE.read_text(), list(CLAIMS))})


if __name__ == "__main__":
    common.run(main, OPTIONS)
