"""The claims as data: what is compared, the figures of the paper, and the margins.

The margins were committed before the first measurement. A ratio must exceed 1 where something is
better, and 0.9 where it is at least as good: its distance may be a ninth larger.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.claims import conditional, densities, latents, quality
from benchmarks.claims.checks import Check, Claim, Measurement, Use

AS_GOOD = 0.9
SNR = {"VE": 0.16, "VP": 0.01, "sub-VP": 0.01}  # of the Langevin corrector after a predictor
CORRECTOR_SNR = 0.16  # of the corrector alone
FEW = {"sampler": "dpm++_2m_sde", "schedule": "log_snr", "steps": 20}
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


class Sizes(NamedTuple):
    """How much is measured.

    Attributes:
      samples: images drawn for a distance.
      steps: numbers of steps of P and PC, for which the paper has 1,000; the configs of the digits
        have 250.
      reference: steps of the predictor and corrector that few-step solvers are compared with.
      images: held-out images of the other measurements.
      zoo: images of measurements with the larger networks of zoo/.
      classifier: training steps of the classifier of noised images.
    """

    samples: int = 250
    steps: tuple[int, ...] = (50, 250)
    reference: int = 100
    images: int = 100
    zoo: int = 8
    classifier: int = 500


TINY = Sizes(samples=12, steps=(2, 3), reference=2, images=8, zoo=2, classifier=2)


def claims(sizes: Sizes) -> list[Claim]:
    """Return all claims."""
    makers = (
        *(predictor_corrector, predictors, black_box_ode, likelihoods, training),
        *(encodings, manipulation, conditions, later_work),
    )
    return [make(number, sizes) for number, make in enumerate(makers, 1)]


# --- samplers ---


def _pc(sizes: Sizes, steps: int, sde: str, name: str, kind: str) -> Measurement:
    """Return the samples of a cell of Table 1; `kind` is P, P2 with twice the steps, C or PC."""
    options: dict[str, Any] = {"sampler": "pc", **PREDICTORS[name]}
    options["steps"] = steps * (2 if kind in ("P2", "C") else 1)
    if kind == "C":
        options |= {"predictor": "none", "probability_flow": False}
    options["corrector"] = "none" if kind.startswith("P") and kind != "PC" else "langevin"
    if options["corrector"] == "langevin":
        options["snr"] = CORRECTOR_SNR if kind == "C" else SNR[sde]
    return Measurement(quality.draws, (Use(sde),), {"count": sizes.samples, **options})


def _few(sizes: Sizes, name: str, snapshot: int | None = None) -> Measurement:
    """Return samples of a network by the few-step solver with 20 evaluations."""
    count = 4 * sizes.samples
    return Measurement(quality.draws, (Use(name, snapshot),), {"count": count, **FEW})


def predictor_corrector(number: int, sizes: Sizes) -> Claim:
    """Return the claim about Table 1."""
    checks = []
    for n in sizes.steps:
        for sde, rows in FID.items():
            for name, (_, p2000, c2000, pc1000) in rows.items():
                pc = _pc(sizes, n, sde, name, "PC")["distance"]
                p = _pc(sizes, n, sde, name, "P2")["distance"]
                text = f"{sde}, {name}: PC{n} is better than P{2 * n}"
                checks.append(Check(text, f"FID {pc1000:.2f} against {p2000:.2f}", p, pc))
                c = _pc(sizes, n, sde, "reverse diffusion", "C")["distance"]
                text = f"{sde}, {name}: PC{n} is better than C{2 * n}"
                checks.append(Check(text, f"FID {pc1000:.2f} against {c2000:.2f}", c, pc))
    text = (
        "P100 is the predictor alone with 100 steps, C100 the corrector alone and PC50 both with "
        "50 steps each, and so on. The samplers of a row cost as many evaluations of the network; "
        "the paper compares at 2,000. The ratio is the distance of the other sampler divided by "
        "that of PC. The signal-to-noise ratio of the corrector is "
        f"{SNR['VE']} for VE, {SNR['VP']} for VP, "
        f"and {CORRECTOR_SNR} for the corrector alone."
    )
    return Claim(number, "Predictor-corrector sampling", "Table 1", text, tuple(checks))


def predictors(number: int, sizes: Sizes) -> Claim:
    """Return the claim about the predictors."""
    kinds = [(n, kind) for n in sizes.steps for kind in ("P", "P2")]
    checks = [
        check for n, kind in kinds for sde in FID for check in _of_predictors(sizes, n, kind, sde)
    ]
    text = (
        "The ratio is the distance of the second sampler divided by that of the first, or, for "
        "probability flow, that of the first divided by that of the second."
    )
    return Claim(number, "Predictors", "Table 1", text, tuple(checks))


def _of_predictors(sizes: Sizes, n: int, kind: str, sde: str) -> list[Check]:
    """Return the checks of the predictors alone with n steps ("P") or 2 n ("P2")."""
    found = {name: _pc(sizes, n, sde, name, kind)["distance"] for name in PREDICTORS}
    fid = {name: row[("P", "P2").index(kind)] for name, row in FID[sde].items()}
    steps = n if kind == "P" else 2 * n
    ancestral, reverse, flow = PREDICTORS
    text = f"{sde}, P{steps}: reverse diffusion is at least as good as ancestral sampling"
    paper = f"FID {fid[reverse]:.2f} against {fid[ancestral]:.2f}"
    checks = [Check(text, paper, found[ancestral], found[reverse], AS_GOOD)]
    for other in (ancestral, reverse) if sde == "VE" else ():
        text = f"VE, P{steps}: probability flow is worse than {other}"
        paper = f"FID {fid[flow]:.2f} against {fid[other]:.2f}"
        checks.append(Check(text, paper, found[flow], found[other]))
    return checks


def black_box_ode(number: int, sizes: Sizes) -> Claim:
    """Return the claim about the black-box ODE solver."""
    checks = []
    for name, count in (("VP", sizes.samples), ("zoo/fashion_vp", sizes.zoo)):
        at = {
            tolerance: Measurement(
                quality.flow, (Use(name),), {"count": count, "tolerance": tolerance}
            )
            for tolerance in (1e-5, 1e-3, 1e-1)
        }
        fine, middle, coarse = (each["evaluations"] for each in at.values())
        checks += [
            Check(f"{name}: 1e-5 needs more evaluations than 1e-3", "548 and 86", fine, middle),
            Check(f"{name}: 1e-3 needs more evaluations than 1e-1", "86 and 14", middle, coarse),
            Check(
                f"{name}: 1e-3 needs less than a fifth of 1,000 evaluations",
                "86",
                at[1e-3]["saving"],
                margin=5.0,
            ),
        ]
        if name != "VP":
            continue
        fine, middle, coarse = (each["distance"] for each in at.values())
        checks += [
            Check(f"{name}: 1e-3 is as good as 1e-5", "visually the same", fine, middle, AS_GOOD),
            Check(f"{name}: 1e-1 is worse than 1e-5", "visibly worse", coarse, fine),
        ]
        for n in sizes.steps:
            fixed = _pc(sizes, n, "VP", "probability flow", "P2")["distance"]
            text = f"{name}: 1e-3 is as good as {2 * n} steps of fixed length"
            paper = "FID 3.69 (Table 2) against 3.59 (P1000)"
            checks.append(Check(text, paper, fixed, middle, AS_GOOD))
    text = (
        "The probability-flow ODE by Dormand-Prince with adaptive steps, at relative and absolute "
        "tolerances of 1e-5, 1e-3 and 1e-1. Ratios are those of evaluations, or of the worse "
        "distance to the better one; the ratio to 1,000 evaluations is a single number."
    )
    return Claim(number, "The black-box ODE sampler", "Figure 3", text, tuple(checks))


# --- networks ---


def likelihoods(number: int, sizes: Sizes) -> Claim:
    """Return the claim about bits/dim."""
    papers = {
        "likelihood weighting": "not in Table 2; 2.83 in arXiv:2101.09258",
        "sub-VP": "3.02 against 3.16 (DDPM++ cont.)",
    }
    checks = []
    for suffix in ("", ", longer"):
        for name, paper in papers.items():
            found = _gain(f"VP{suffix}", f"{name}{suffix}", sizes)
            text = f"{name}{suffix}: fewer bits/dim than VP"
            checks.append(Check(text, paper, found["gain"], margin=0.0))
            text = f"{name}{suffix}: a lower bound on bits/dim than VP"
            checks.append(Check(text, "not reported", found["gain of the bound"], margin=0.0))
    text = (
        "Bits/dim of the held-out digits with uniform dequantization: exact ones by the "
        "probability-flow ODE, and the upper bound for the reverse SDE, whose density is another "
        "one. The number is the decrease in bits/dim, from the same images. The networks of the "
        "rows with `longer` were trained for three times as many steps."
    )
    return Claim(number, "Likelihoods", "Table 2", text, tuple(checks))


def _gain(before: str, after: str, sizes: Sizes) -> Measurement:
    return Measurement(densities.gain, (Use(before), Use(after)), {"count": sizes.images})


ABLATIONS = {
    "no FIR filter": "a FIR filter for resampling",
    "no rescaled skips": "skip connections rescaled by 1 / sqrt(2)",
    "DDPM's blocks": "residual blocks of BigGAN in place of DDPM's",
    "no progressive input": "progressive input",
}


def training(number: int, sizes: Sizes) -> Claim:
    """Return the claim about networks and training."""
    pairs = (
        ("VP", "DDPM++ discrete", "continuous training of DDPM++ (VP)", "FID 2.55 against 2.78"),
        ("VE", "NCSN++ discrete", "continuous training of NCSN++ (VE)", "FID 2.38 against 2.45"),
        ("DDPM++ discrete", "DDPM", "DDPM++ in place of DDPM", "FID 2.78 against 3.17"),
        ("NCSN++ discrete", "NCSNv2", "NCSN++ in place of NCSNv2", "FID 2.45 against 10.87"),
    )
    checks = []
    for better, worse, text, paper in pairs:
        other, own = _few(sizes, worse)["distance"], _few(sizes, better)["distance"]
        checks.append(Check(f"{text} is better", paper, other, own))
    for name, text in ABLATIONS.items():
        other, own = _few(sizes, name)["distance"], _few(sizes, "VE", 1)["distance"]
        text = f"{text} is better (NCSN++, VE)"
        checks.append(Check(text, "improves FID (Appendix H)", other, own))
    text = (
        "Networks of the same width, trained for the same number of steps, and sampled by "
        "`dpm++_2m_sde` with 20 evaluations. The ratio is the distance without the change divided "
        "by that with it. DDPM has DDPM's blocks and no rescaled skip connections; NCSNv2 has "
        "about as many parameters as the others. The last four compare networks trained for half "
        "as many steps, of which each lacks one part of NCSN++."
    )
    return Claim(number, "Training and architectures", "Table 3, Appendix H", text, tuple(checks))


# --- codes ---


def encodings(number: int, sizes: Sizes) -> Claim:
    """Return the claim that codes are unique."""
    arguments = {"count": sizes.images}
    checks = []
    for text, uses in (
        ("the same network with another seed", (Use("VP"), Use("VP", shift=1))),
        ("another network: DDPM, trained on discrete levels", (Use("VP"), Use("DDPM", shift=1))),
    ):
        found = Measurement(latents.codes, uses, arguments)
        text = f"codes by {text}: less than half as far apart as those of other images"
        checks.append(Check(text, "nearly the same codes", found["other"], found["same"], 2.0))
    text = (
        "Codes of held-out digits by two networks that were trained separately. The ratio is the "
        "mean distance between the codes of two different images, one by each network, divided by "
        "that between the codes of the same image."
    )
    return Claim(number, "Unique encodings", "Section 4.3, Appendix D", text, tuple(checks))


LOW = 0.8


def manipulation(number: int, sizes: Sizes) -> Claim:
    """Return the claim about interpolation and temperature."""
    between = Measurement(latents.interpolation, (Use("VP"),), {"count": sizes.images})
    heat = Measurement(latents.temperature, (Use("VP"),), {"count": sizes.images, "low": LOW})
    checks = (
        Check(
            "images halfway between two codes are closer to data than means of two images",
            "Figure 3, pictures",
            between["pixels"],
            between["codes"],
        ),
        Check(
            "interpolation is gradual: both ends differ by more than twice the largest of 9 steps",
            "Figure 3, pictures",
            between["ends"],
            between["step"],
            2.0,
        ),
        Check(
            f"codes times {LOW} give less varied images",
            "pictures",
            heat["spread"],
            heat["spread at low"],
        ),
        Check(
            f"codes times {LOW} keep the class of 4 of 5 digits",
            "pictures",
            heat["kept"],
            margin=0.8,
        ),
    )
    text = (
        "Codes of held-out digits by the probability flow; interpolation is spherical. Numbers "
        "stand for pictures: distances to held-out digits, root mean square differences, and the "
        "class according to a classifier of clean digits. Pictures of networks of the zoo: "
        "[digits](interpolation.png), [emoji](emoji_interpolation.png)."
    )
    return Claim(number, "Interpolation and temperature", "Figure 3, Section 4.3", text, checks)


# --- conditions ---


def conditions(number: int, sizes: Sizes) -> Claim:
    """Return the claim about conditional generation."""
    guided = Measurement(
        conditional.guided,
        (Use("VP"),),
        {"count": sizes.samples, "iterations": sizes.classifier, "strength": 4.0},
    )
    checks = [
        Check(
            "digits: 4 of 5 guided samples are of the requested class (chance: 1 in 10)",
            "Figure 4, pictures",
            guided["correct"],
            margin=0.8,
        )
    ]
    for name, count in (
        ("VP", sizes.images),
        ("zoo/fashion_vp", sizes.zoo),
        ("zoo/emoji_vp", sizes.zoo),
    ):
        found = Measurement(conditional.inpainting, (Use(name),), {"count": count})
        text = f"{name}: inpainting has a smaller error than samples without a measurement"
        checks.append(Check(text, "pictures", found["samples"], found["solutions"], 1.1))
        if name == "VP":
            text = "VP: half of the inpainted digits are of the class of the original"
            checks.append(Check(text, "pictures", found["kept"], margin=0.5))
    arguments = {"count": 3 * sizes.zoo}
    found = Measurement(conditional.colorization, (Use("zoo/emoji_vp"),), arguments)
    checks += [
        Check(
            "emoji: colours are closer to the true ones than those of another emoji",
            "Figure 4, pictures",
            found["others"],
            found["solutions"],
            1.1,
        ),
        Check(
            "emoji: colours are at least half as strong as the true ones",
            "Figure 4, pictures",
            found["colour"],
            found["true colour"],
            0.5,
        ),
    ]
    text = (
        "Guidance by a noise-conditional classifier (scale 4), judged by a classifier of clean "
        "digits. Inpainting of the central box of half the sides, and colorization, by the paper's "
        "method: projection, with 100 steps of reverse diffusion. Errors are root mean squares in "
        "the unknown part. Pictures, by another method: [inpainting](inpainting.png), "
        "[colorization](colorization.png)."
    )
    return Claim(number, "Conditional generation", "Figure 4, Section 5", text, tuple(checks))


# --- later work ---


def later_work(number: int, sizes: Sizes) -> Claim:
    """Return the claims of later work."""
    checks = []
    nfe = 2 * sizes.reference
    for sde in ("VP", "VE", "sub-VP"):
        options = {"sampler": "pc", "predictor": "reverse_diffusion", "corrector": "langevin"}
        options |= {"steps": sizes.reference, "snr": SNR[sde]}
        pc = Measurement(quality.draws, (Use(sde),), {"count": 4 * sizes.samples, **options})
        text = f"{sde}: 20 evaluations are as good as PC with {nfe}"
        few = _few(sizes, sde)["distance"]
        checks.append(Check(text, "not in the paper", pc["distance"], few, AS_GOOD))
    for name in ("EDM", "rectified flow"):
        other, own = _few(sizes, "VP")["distance"], _few(sizes, name)["distance"]
        text = f"{name} is as good as VP with 20 evaluations"
        checks.append(Check(text, "not in the paper", other, own, AS_GOOD))
        found = _gain("VP", name, sizes)
        text = f"{name} has fewer bits/dim than VP"
        checks.append(Check(text, "not in the paper", found["gain"], margin=0.0))
    text = (
        "`dpm++_2m_sde` with 20 evaluations against predictor and corrector, and EDM and rectified "
        "flow against VP: the same network, data and number of training steps."
    )
    title = "Later work: few-step solvers, EDM and rectified flow"
    source = "arXiv:2211.01095, 2206.00364, 2209.03003"
    return Claim(number, title, source, text, tuple(checks))
