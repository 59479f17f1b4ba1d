"""Claims 4, 5 and 9: objectives, SDEs and architectures, and few-step solvers of later work."""

from __future__ import annotations

from benchmarks.claims import quality
from benchmarks.claims.checks import Check, Claim, Measurement, Use
from benchmarks.claims.common import AS_GOOD, SNR, Sizes, few_steps, gain

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
    for suffix in ("", ", longer"):
        for name, paper in papers.items():
            found = gain(f"VP{suffix}", f"{name}{suffix}", sizes)
            text = f"{name}{suffix}: fewer bits/dim than VP"
            bits = found["before"], found["after"]
            checks.append(Check(text, paper, found["gain"], margin=0.0, values=bits))
            text = f"{name}{suffix}: a lower bound on bits/dim than VP"
            bits = found["bound before"], found["bound after"]
            bound = found["gain of the bound"]
            checks.append(Check(text, "not reported", bound, margin=0.0, values=bits))
    text = (
        "Bits/dim of the held-out digits with uniform dequantization: exact ones by the "
        "probability-flow ODE, and the upper bound for the reverse SDE, whose density is another "
        "one. The number is the decrease in bits/dim, from the same images. The networks of the "
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
    for better, worse, text, paper in pairs:
        other, own = few_steps(sizes, worse)["distance"], few_steps(sizes, better)["distance"]
        checks.append(Check(f"{text} is better", paper, other, own))
    for name, text in ABLATIONS.items():
        other, own = few_steps(sizes, name)["distance"], few_steps(sizes, "VE", 1)["distance"]
        text = f"NCSN++ (VE) is better with {text}"
        checks.append(Check(text, "improves FID (Appendix H)", other, own))
    other, own = (
        few_steps(sizes, "VE", 1)["distance"],
        few_steps(sizes, "twice the blocks")["distance"],
    )
    text = "NCSN++ (VE) is better with twice as many residual blocks"
    checks.append(Check(text, "improves FID (Appendix H)", other, own))
    text = (
        "Networks of the same width, trained for the same number of steps, and sampled by "
        "`dpm++_2m_sde` with 20 evaluations. The ratio is the distance without the change divided "
        "by that with it. DDPM has DDPM's blocks and no rescaled skip connections; NCSNv2 has "
        "about as many parameters as the others. The last five compare networks trained for half "
        "as many steps: NCSN++ with one residual block for each resolution, without one of its "
        "parts, and with two blocks."
    )
    return Claim(number, "Training and architectures", "Table 3, Appendix H", text, tuple(checks))


def later_work(number: int, sizes: Sizes) -> Claim:
    """Return the claims of later work."""
    checks = []
    nfe = 2 * sizes.reference
    for sde in ("VP", "VE", "sub-VP"):
        options = {"sampler": "pc", "predictor": "reverse_diffusion", "corrector": "langevin"}
        options |= {"steps": sizes.reference, "snr": SNR[sde]}
        pc = Measurement(quality.draws, (Use(sde),), {"count": sizes.long, **options})
        text = f"{sde}: 20 evaluations are as good as PC with {nfe:,}"
        few = few_steps(sizes, sde, count=sizes.long)["distance"]
        checks.append(Check(text, "not in the paper", pc["distance"], few, AS_GOOD))
    for name in ("EDM", "rectified flow"):
        other, own = few_steps(sizes, "VP")["distance"], few_steps(sizes, name)["distance"]
        text = f"{name} is as good as VP with 20 evaluations"
        checks.append(Check(text, "not in the paper", other, own, AS_GOOD))
        found = gain("VP", name, sizes)
        text = f"{name} has fewer bits/dim than VP"
        bits = found["before"], found["after"]
        checks.append(Check(text, "not in the paper", found["gain"], margin=0.0, values=bits))
    text = (
        "`dpm++_2m_sde` with 20 evaluations against predictor and corrector, and EDM and rectified "
        "flow against VP: the same network, data and number of training steps."
    )
    title = "Later work: few-step solvers, EDM and rectified flow"
    source = "arXiv:2211.01095, 2206.00364, 2209.03003"
    return Claim(number, title, source, text, tuple(checks))
