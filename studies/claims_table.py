"""The nine claims: what each compares, with margins and the figures of the paper."""

from __future__ import annotations

from typing import Any

from studies import claims_measured
from studies.claims_checks import AS_GOOD, Check, Measured, Study, Use, larger, smaller
from studies.claims_networks import OTHER_DATA
from studies.common import Estimate

SNR = {"VE": 0.16, "VP": 0.01, "sub-VP": 0.01}  # of the Langevin corrector after a predictor
CORRECTOR_SNR = 0.16  # of the corrector alone
TOLERANCES = (1e-5, 1e-3, 1e-1)
LOW = 0.8  # temperature
DATA = {"VP": "digits", "zoo/fashion_vp": "Fashion-MNIST", "zoo/emoji_vp": "emoji"}
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


# --- 1 to 3: samplers -----------------------------------------------------------------------------


def _cases(study: Study) -> list[tuple[int, str]]:
    """Return the numbers of steps and the data they are used for: all for the digits."""
    steps = study.sizes.steps
    return [(n, "") for n in steps] + [(steps[0], data) for data in OTHER_DATA]


def _cell(
    study: Study, steps: int, sde: str, name: str, kind: str, data: str = ""
) -> list[Estimate]:
    """Return the distances of a cell of Table 1: P, P2 with twice the steps, C or PC."""
    options: dict[str, Any] = {"sampler": "pc", **PREDICTORS[name], "corrector": "none"}
    options["steps"] = steps * (2 if kind in ("P2", "C") else 1)
    if kind == "C":
        options |= {"predictor": "none", "probability_flow": False}
    if kind in ("C", "PC"):
        options |= {"corrector": "langevin", "snr": CORRECTOR_SNR if kind == "C" else SNR[sde]}
    return study.distances(sde + data, **options)


def predictor_corrector(study: Study) -> list[Check]:
    """Return the checks of Table 1."""
    checks = []
    for n, data in _cases(study):
        for sde, rows in FID.items():
            for name, (_, p2000, c2000, pc1000) in rows.items():
                pc = _cell(study, n, sde, name, "PC", data)
                p = _cell(study, n, sde, name, "P2", data)
                text = f"{sde}{data}, {name}: PC{n} is better than P{2 * n}"
                checks.append(smaller(text, f"FID {pc1000:.2f} against {p2000:.2f}", pc, p))
                c = _cell(study, n, sde, "reverse diffusion", "C", data)
                text = f"{sde}{data}, {name}: PC{n} is better than C{2 * n}"
                checks.append(smaller(text, f"FID {pc1000:.2f} against {c2000:.2f}", pc, c))
    return checks


def predictors(study: Study) -> list[Check]:
    """Return the checks of the predictors."""
    return [
        check
        for n, data in _cases(study)
        for kind in ("P", "P2")
        for sde in FID
        for check in _of_predictors(study, n, kind, sde, data)
    ]


def _of_predictors(study: Study, n: int, kind: str, sde: str, data: str) -> list[Check]:
    """Return the checks of the predictors alone with n steps ("P") or 2 n ("P2")."""
    found = {name: _cell(study, n, sde, name, kind, data) for name in PREDICTORS}
    fid = {name: row[("P", "P2").index(kind)] for name, row in FID[sde].items()}
    steps = n if kind == "P" else 2 * n
    ancestral, reverse, flow = PREDICTORS
    text = f"{sde}{data}, P{steps}: reverse diffusion is at least as good as ancestral sampling"
    paper = f"FID {fid[reverse]:.2f} against {fid[ancestral]:.2f}"
    checks = [smaller(text, paper, found[reverse], found[ancestral], AS_GOOD)]
    for other in (ancestral, reverse) if sde == "VE" else ():
        text = f"VE{data}, P{steps}: probability flow is worse than {other}"
        paper = f"FID {fid[flow]:.2f} against {fid[other]:.2f}"
        checks.append(larger(text, paper, found[flow], found[other]))
    return checks


def black_box_ode(study: Study) -> list[Check]:
    """Return the checks of the black-box ODE solver."""
    checks = []
    for name, count in (("VP", study.sizes.samples), ("zoo/fashion_vp", study.sizes.zoo)):
        at = _at_tolerances(study, name, count)
        fine, middle, coarse = (each.of("evaluations") for each in at)
        data = DATA[name]
        text = f"{data}: 1e-3 needs less than a fifth of 1,000 evaluations"
        checks += [
            larger(f"{data}: 1e-5 needs more evaluations than 1e-3", "548 and 86", fine, middle),
            larger(f"{data}: 1e-3 needs more evaluations than 1e-1", "86 and 14", middle, coarse),
            Check(text, "86", at[1].of("saving"), margin=5.0),
        ]
    at = _at_tolerances(study, "VP", study.sizes.samples)
    fine, middle, coarse = (each.of("distance") for each in at)
    text = "digits: 1e-3 is as good as 1e-5"
    checks.append(smaller(text, "visually the same", middle, fine, AS_GOOD))
    text = "digits: 1e-1 is worse than 1e-5"
    checks.append(larger(text, "visibly worse", coarse, fine))
    for n in study.sizes.steps:
        fixed = _cell(study, n, "VP", "probability flow", "P2")
        text = f"digits: 1e-3 is as good as {2 * n} steps of fixed length"
        paper = "FID 3.69 (Table 2) against 3.59 (P1000)"
        checks.append(smaller(text, paper, middle, fixed, AS_GOOD))
    return checks


def _at_tolerances(study: Study, name: str, count: int) -> list[Measured]:
    """Return the samples of a network at each of TOLERANCES."""
    return [
        study.measure(claims_measured.flow, name, count=count, tolerance=tolerance)
        for tolerance in TOLERANCES
    ]


# --- 4 and 5: networks ----------------------------------------------------------------------------


def _gain(study: Study, text: str, paper: str, before: str, after: str, bound: str = "") -> Check:
    """Return the check that one network has fewer bits/dim than another, or a smaller `bound`."""
    found = study.measure(claims_measured.gain, before, after, count=study.sizes.images)
    names = ("gain of the bound", "bound after", "bound before")
    gain, *shown = (found.of(name) for name in (names if bound else ("gain", "after", "before")))
    return Check(text, paper, gain, 0.0, shown=tuple(shown))


def likelihoods(study: Study) -> list[Check]:
    """Return the checks of bits/dim."""
    papers = {
        "likelihood weighting": "not in Table 2; 2.83 in arXiv:2101.09258",
        "sub-VP": "3.02 against 3.16 (DDPM++ cont.)",
    }
    checks = []
    for end in ("", ", longer", *OTHER_DATA):
        for name, paper in papers.items():
            networks = f"VP{end}", f"{name}{end}"
            text = f"{name}{end}: fewer bits/dim than VP"
            checks.append(_gain(study, text, paper, *networks))
            text = f"{name}{end}: a smaller upper bound than VP"
            checks.append(_gain(study, text, "not reported", *networks, bound="bound"))
    return checks


def networks(study: Study) -> list[Check]:
    """Return the checks of networks and training."""
    pairs = (
        ("VP", "DDPM++ discrete", "continuous training of DDPM++ (VP)", "FID 2.55 against 2.78"),
        ("VE", "NCSN++ discrete", "continuous training of NCSN++ (VE)", "FID 2.38 against 2.45"),
        ("DDPM++ discrete", "DDPM", "DDPM++ in place of DDPM", "FID 2.78 against 3.17"),
        ("NCSN++ discrete", "NCSNv2", "NCSN++ in place of NCSNv2", "FID 2.45 against 10.87"),
    )
    checks = []
    for data in ALL_DATA:
        for better, worse, text, paper in pairs:
            own, other = (study.distances(name + data) for name in (better, worse))
            checks.append(smaller(f"{text} is better{data}", paper, own, other))
        plain = study.distances(f"VE{data}", 1)
        for name, part in ABLATIONS.items():
            without = study.distances(name + data)
            checks.append(_of_part(part, data, plain, without))
        blocks = study.distances(f"twice the blocks{data}")
        checks.append(_of_part("twice as many residual blocks", data, blocks, plain))
    return checks


def _of_part(part: str, data: str, with_it: list[Estimate], without: list[Estimate]) -> Check:
    text = f"NCSN++ (VE) is better with {part}{data}"
    return smaller(text, "improves FID (Appendix H)", with_it, without)


# --- 6 to 8: codes and conditional generation -----------------------------------------------------


def encodings(study: Study) -> list[Check]:
    """Return the checks that codes are unique."""
    cases = [("the same network with another seed", "VP", "VP")]
    another = "another network: DDPM, trained on discrete levels"
    cases += [(another + data, f"VP{data}", f"DDPM{data}") for data in ALL_DATA]
    checks = []
    for name, first, second in cases:
        uses = Use(first), Use(second, shift=1)
        found = study.measure(claims_measured.codes, *uses, count=study.sizes.images)
        text = f"codes by {name}: less than half as far apart as those of other images"
        same, other = found.of("same"), found.of("other")
        checks.append(smaller(text, "nearly the same codes", same, other, 2.0))
    return checks


def manipulation(study: Study) -> list[Check]:
    """Return the checks of interpolation and temperature."""
    checks, many, few = [], study.sizes.images, 4 * study.sizes.zoo
    for name, count in (("VP", many), ("zoo/fashion_vp", few), ("zoo/emoji_vp", few)):
        between = study.measure(claims_measured.interpolation, name, count=count)
        heat = study.measure(claims_measured.temperature, name, count=count, low=LOW)
        data, paper = DATA[name], "Figure 3, pictures"
        text = (
            f"{data}: images halfway between two codes are closer to data than means of two images"
        )
        checks.append(smaller(text, paper, between.of("codes"), between.of("pixels")))
        text = "both ends of an interpolation differ by more than twice the largest of 9 steps"
        ends = between.of("ends"), between.of("step")
        checks.append(larger(f"{data}: {text}", paper, *ends, 2.0))
        text = f"{data}: codes times {LOW} give less varied images"
        checks.append(smaller(text, "pictures", heat.of("spread at low"), heat.of("spread")))
    heat = study.measure(claims_measured.temperature, "VP", count=many, low=LOW)
    text = f"digits: codes times {LOW} keep the class of 4 of 5"
    return [*checks, Check(text, "pictures", heat.of("kept"), margin=0.8)]


def conditions(study: Study) -> list[Check]:
    """Return the checks of conditional generation."""
    sizes = study.sizes
    options = {"count": sizes.guided, "iterations": sizes.classifier, "strength": 4.0}
    correct = study.measure(claims_measured.guided, "VP", **options).of("correct")
    text = "digits: 4 of 5 guided samples are of the requested class (chance: 1 in 10)"
    checks = [Check(text, "Figure 4, pictures", correct, margin=0.8)]
    for name, count in (
        ("VP", sizes.images),
        ("zoo/fashion_vp", sizes.zoo),
        ("zoo/emoji_vp", sizes.zoo),
    ):
        found = study.measure(claims_measured.inpainting, name, count=count)
        text = f"{DATA[name]}: inpainting has a smaller error than samples without a measurement"
        errors = found.of("solutions"), found.of("samples")
        checks.append(smaller(text, "pictures", *errors, 1.1))
        if name == "VP":
            text = "digits: half of the inpainted ones are of the class of the original"
            checks.append(Check(text, "pictures", found.of("kept"), margin=0.5))
    found = study.measure(claims_measured.colorization, "zoo/emoji_vp", count=3 * sizes.zoo)
    text = "emoji: colors are closer to the true ones than those of another emoji"
    paper = "Figure 4, pictures"
    checks.append(smaller(text, paper, found.of("solutions"), found.of("others"), 1.1))
    text = "emoji: colors are at least half as strong as the true ones"
    checks.append(larger(text, paper, found.of("color"), found.of("true color"), 0.5))
    return checks


# --- 9: later work --------------------------------------------------------------------------------


def later_work(study: Study) -> list[Check]:
    """Return the checks of few-step solvers, EDM and rectified flow."""
    checks, sizes, paper = [], study.sizes, "not in the paper"
    for data in ALL_DATA:
        count = sizes.long_elsewhere if data else sizes.long
        for sde in ("VP", "VE", "sub-VP"):
            options: dict[str, Any] = {"sampler": "pc", "corrector": "langevin", "count": count}
            options |= {"predictor": "reverse_diffusion", "steps": sizes.reference}
            pc = study.distances(sde + data, snr=SNR[sde], **options)
            few = study.distances(sde + data, count=count)
            text = f"{sde}{data}: 20 evaluations are as good as PC with {2 * sizes.reference:,}"
            checks.append(smaller(text, paper, few, pc, AS_GOOD))
        for name in ("EDM", "rectified flow"):
            vp, own = (study.distances(each + data) for each in ("VP", name))
            text = f"{name} is as good as VP with 20 evaluations{data}"
            checks.append(smaller(text, paper, own, vp, AS_GOOD))
            text = f"{name} has fewer bits/dim than VP{data}"
            checks.append(_gain(study, text, paper, f"VP{data}", name + data))
    return checks


CLAIMS = {
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
