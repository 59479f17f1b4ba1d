"""Claims 4, 5 and 9: objectives, SDEs and architectures, and few-step solvers of later work."""

from __future__ import annotations

from benchmarks.claims import quality
from benchmarks.claims.checks import Check, Claim, Measurement, Use, smaller
from benchmarks.claims.common import ALL_DATA, AS_GOOD, SNR, Sizes, few_steps, gain
from benchmarks.claims.networks import OTHER_DATA

ABLATIONS = {
    "no FIR filter": "a FIR filter for resampling",
    "no rescaled skips": "skip connections rescaled by 1 / sqrt(2)",
    "DDPM's blocks": "residual blocks of BigGAN in place of DDPM's",
    "no progressive input": "progressive input",
}


def likelihoods(number: int, sizes: Sizes) -> Claim:
    """Return the claim about bits/dim."""
    papers = {
        "likelihood weighting": "not in Table 2; 2.83 in arXiv:2101.09258",
        "sub-VP": "3.02 against 3.16 (DDPM++ cont.)",
    }
    checks = []
    for suffix in ("", ", longer", *OTHER_DATA):
        for name, paper in papers.items():
            found = gain(f"VP{suffix}", f"{name}{suffix}", sizes)
            text = f"{name}{suffix}: fewer bits/dim than VP"
            bits = found["after"], found["before"]
            checks.append(Check(text, paper, found["gain"], margin=0.0, values=bits))
            text = f"{name}{suffix}: a smaller upper bound than VP"
            bits = found["bound after"], found["bound before"]
            bound = found["gain of the bound"]
            checks.append(Check(text, "not reported", bound, margin=0.0, values=bits))
    text = (
        "Bits/dim of held-out images with uniform dequantization: those of the density of the "
        "probability-flow ODE, and the upper bound on those of the reverse SDE, whose density is "
        "another one. The number is the decrease from VP, on the same images. The networks of the "
        "rows with `longer` were trained for three times as many steps."
    )
    return Claim(number, "Likelihoods", "Table 2", text, tuple(checks))


def training(number: int, sizes: Sizes) -> Claim:
    """Return the claim about networks and training."""
    pairs = (
        ("VP", "DDPM++ discrete", "continuous training of DDPM++ (VP)", "FID 2.55 against 2.78"),
        ("VE", "NCSN++ discrete", "continuous training of NCSN++ (VE)", "FID 2.38 against 2.45"),
        ("DDPM++ discrete", "DDPM", "DDPM++ in place of DDPM", "FID 2.78 against 3.17"),
        ("NCSN++ discrete", "NCSNv2", "NCSN++ in place of NCSNv2", "FID 2.45 against 10.87"),
    )
    checks = []
    for data in ALL_DATA:
        for better, worse, text, paper in pairs:
            own, other = (few_steps(sizes, name + data)["distance"] for name in (better, worse))
            checks.append(smaller(f"{text} is better{data}", paper, own, other))
        checks += _of_changes(sizes, data)
    text = (
        "Networks of the same width, trained for the same number of steps, and sampled by "
        "`dpm++_2m_sde` with 20 evaluations. The ratio is the distance without the change divided "
        "by that with it. DDPM has DDPM's blocks and no rescaled skip connections; NCSNv2 has "
        "about as many parameters as the others. The last five of each data set compare networks "
        "trained for half as many steps: NCSN++ with one residual block for each resolution, "
        "without one of its parts, and with two blocks."
    )
    return Claim(number, "Training and architectures", "Table 3, Appendix H", text, tuple(checks))


def _of_changes(sizes: Sizes, data: str) -> list[Check]:
    """Return the checks of single changes of the architecture."""
    plain = few_steps(sizes, f"VE{data}", 1)["distance"]
    pairs = [
        (text, few_steps(sizes, name + data)["distance"], plain) for name, text in ABLATIONS.items()
    ]
    blocks = few_steps(sizes, f"twice the blocks{data}")["distance"]
    pairs.append(("twice as many residual blocks", plain, blocks))
    paper = "improves FID (Appendix H)"
    return [
        smaller(f"NCSN++ (VE) is better with {text}{data}", paper, own, without)
        for text, without, own in pairs
    ]


def later_work(number: int, sizes: Sizes) -> Claim:
    """Return the claims of later work."""
    checks = []
    for data in ALL_DATA:
        checks += [_of_few_steps(sizes, sde, data) for sde in ("VP", "VE", "sub-VP")]
        for name in ("EDM", "rectified flow"):
            checks += _of_other_models(sizes, name, data)
    text = (
        "`dpm++_2m_sde` with 20 evaluations against predictor and corrector, and EDM and rectified "
        "flow against VP: the same network, data and number of training steps."
    )
    title = "Later work: few-step solvers, EDM and rectified flow"
    source = "arXiv:2211.01095, 2206.00364, 2209.03003"
    return Claim(number, title, source, text, tuple(checks))


def _of_few_steps(sizes: Sizes, sde: str, data: str) -> Check:
    """Return the check of 20 evaluations against predictor and corrector."""
    count = sizes.long_elsewhere if data else sizes.long
    options = {"sampler": "pc", "predictor": "reverse_diffusion", "corrector": "langevin"}
    options |= {"steps": sizes.reference, "snr": SNR[sde]}
    pc = Measurement(quality.draws, (Use(sde + data),), {"count": count, **options})
    text = f"{sde}{data}: 20 evaluations are as good as PC with {2 * sizes.reference:,}"
    few = few_steps(sizes, sde + data, count=count)["distance"]
    return smaller(text, "not in the paper", few, pc["distance"], AS_GOOD)


def _of_other_models(sizes: Sizes, name: str, data: str) -> list[Check]:
    """Return the checks of EDM or rectified flow against VP."""
    vp, own = (few_steps(sizes, each + data)["distance"] for each in ("VP", name))
    text = f"{name} is as good as VP with 20 evaluations{data}"
    quality_check = smaller(text, "not in the paper", own, vp, AS_GOOD)
    found = gain(f"VP{data}", name + data, sizes)
    text = f"{name} has fewer bits/dim than VP{data}"
    bits = found["after"], found["before"]
    return [
        quality_check,
        Check(text, "not in the paper", found["gain"], margin=0.0, values=bits),
    ]
