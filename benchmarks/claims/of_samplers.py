"""Claims 1 to 3: predictors, correctors and the black-box ODE solver."""

from __future__ import annotations

from typing import Any

from benchmarks.claims import quality
from benchmarks.claims.checks import Check, Claim, Measurement, Use, larger, smaller
from benchmarks.claims.common import AS_GOOD, DATA, SNR, Sizes
from benchmarks.claims.networks import OTHER_DATA

CORRECTOR_SNR = 0.16  # of the corrector alone
TOLERANCES = (1e-5, 1e-3, 1e-1)
PREDICTORS: dict[str, dict[str, Any]] = {
    "ancestral sampling": {"predictor": "ancestral_sampling"},
    "reverse diffusion": {"predictor": "reverse_diffusion"},
    "probability flow": {"predictor": "reverse_diffusion", "probability_flow": True},
}
FID = {
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
"""P1000, P2000, C2000 and PC1000 of Table 1."""


def _cases(sizes: Sizes) -> list[tuple[int, str]]:
    """Return the numbers of steps and the data they are used for: all for the digits."""
    elsewhere = [(sizes.steps[0], data) for data in OTHER_DATA]
    return [(n, "") for n in sizes.steps] + elsewhere


def _pc(sizes: Sizes, steps: int, sde: str, name: str, kind: str, data: str = "") -> Measurement:
    """Return the samples of a cell of Table 1; `kind` is P, P2 with twice the steps, C or PC."""
    options: dict[str, Any] = {"sampler": "pc", **PREDICTORS[name], "corrector": "none"}
    options["steps"] = steps * (2 if kind in ("P2", "C") else 1)
    if kind == "C":
        options |= {"predictor": "none", "probability_flow": False}
    if kind in ("C", "PC"):
        options |= {"corrector": "langevin", "snr": CORRECTOR_SNR if kind == "C" else SNR[sde]}
    return Measurement(quality.draws, (Use(sde + data),), {"count": sizes.samples, **options})


def predictor_corrector(number: int, sizes: Sizes) -> Claim:
    """Return the claim about Table 1."""
    checks = []
    for n, data in _cases(sizes):
        for sde, rows in FID.items():
            for name, (_, p2000, c2000, pc1000) in rows.items():
                pc = _pc(sizes, n, sde, name, "PC", data)["distance"]
                p = _pc(sizes, n, sde, name, "P2", data)["distance"]
                text = f"{sde}{data}, {name}: PC{n} is better than P{2 * n}"
                checks.append(smaller(text, f"FID {pc1000:.2f} against {p2000:.2f}", pc, p))
                c = _pc(sizes, n, sde, "reverse diffusion", "C", data)["distance"]
                text = f"{sde}{data}, {name}: PC{n} is better than C{2 * n}"
                checks.append(smaller(text, f"FID {pc1000:.2f} against {c2000:.2f}", pc, c))
    text = (
        "P100 is the predictor alone with 100 steps, C100 the corrector alone and PC50 both with "
        "50 steps each, and so on. The samplers of a row cost as many evaluations of the network; "
        "the paper compares at 2,000. The ratio is the distance of the other sampler divided by "
        "that of PC. The signal-to-noise ratio of the corrector is "
        f"{SNR['VE']} for VE, {SNR['VP']} for VP, "
        f"and {CORRECTOR_SNR} for the corrector alone. With 50 steps errors of discretization are "
        "large: for VP the official steps then add noise themselves, see [sampling](sampling.md). "
        "The configs of the digits have 250; other data were measured with 50 for lack of time."
    )
    return Claim(number, "Predictor-corrector sampling", "Table 1", text, tuple(checks))


def predictors(number: int, sizes: Sizes) -> Claim:
    """Return the claim about the predictors."""
    checks = [
        check
        for n, data in _cases(sizes)
        for kind in ("P", "P2")
        for sde in FID
        for check in _of_predictors(sizes, n, kind, sde, data)
    ]
    text = (
        "The ratio is the distance of the second sampler divided by that of the first, or, for "
        "probability flow, that of the first divided by that of the second."
    )
    return Claim(number, "Predictors", "Table 1", text, tuple(checks))


def _of_predictors(sizes: Sizes, n: int, kind: str, sde: str, data: str) -> list[Check]:
    """Return the checks of the predictors alone with n steps ("P") or 2 n ("P2")."""
    found = {name: _pc(sizes, n, sde, name, kind, data)["distance"] for name in PREDICTORS}
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


def black_box_ode(number: int, sizes: Sizes) -> Claim:
    """Return the claim about the black-box ODE solver."""
    checks = []
    for name, count in (("VP", sizes.samples), ("zoo/fashion_vp", sizes.zoo)):
        checks += _of_evaluations(DATA[name], _at_tolerances(name, count))
    checks += _of_tolerances(sizes, _at_tolerances("VP", sizes.samples))
    text = (
        "The probability-flow ODE by Dormand-Prince with adaptive steps, at relative and absolute "
        "tolerances of 1e-5, 1e-3 and 1e-1. Ratios are those of evaluations, or of the worse "
        "distance to the better one; the ratio to 1,000 evaluations is a single number."
    )
    return Claim(number, "The black-box ODE sampler", "Figure 3", text, tuple(checks))


def _at_tolerances(name: str, count: int) -> list[Measurement]:
    """Return the samples of a network at each of TOLERANCES."""
    return [
        Measurement(quality.flow, (Use(name),), {"count": count, "tolerance": tolerance})
        for tolerance in TOLERANCES
    ]


def _of_evaluations(data: str, at: list[Measurement]) -> list[Check]:
    """Return the checks of the numbers of evaluations."""
    fine, middle, coarse = (each["evaluations"] for each in at)
    saving = at[1]["saving"]
    text = f"{data}: 1e-3 needs less than a fifth of 1,000 evaluations"
    return [
        larger(f"{data}: 1e-5 needs more evaluations than 1e-3", "548 and 86", fine, middle),
        larger(f"{data}: 1e-3 needs more evaluations than 1e-1", "86 and 14", middle, coarse),
        Check(text, "86", saving, margin=5.0),
    ]


def _of_tolerances(sizes: Sizes, at: list[Measurement]) -> list[Check]:
    """Return the checks of the quality of digits."""
    fine, middle, coarse = (each["distance"] for each in at)
    text = "digits: 1e-3 is as good as 1e-5"
    checks = [
        smaller(text, "visually the same", middle, fine, AS_GOOD),
        larger("digits: 1e-1 is worse than 1e-5", "visibly worse", coarse, fine),
    ]
    for n in sizes.steps:
        fixed = _pc(sizes, n, "VP", "probability flow", "P2")["distance"]
        text = f"digits: 1e-3 is as good as {2 * n} steps of fixed length"
        paper = "FID 3.69 (Table 2) against 3.59 (P1000)"
        checks.append(smaller(text, paper, middle, fixed, AS_GOOD))
    return checks
