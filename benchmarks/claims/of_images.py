"""Claims 6 to 8: latent codes, and conditional generation."""

from __future__ import annotations

from benchmarks.claims import conditional, latents
from benchmarks.claims.checks import Check, Claim, Measurement, Use, larger, smaller
from benchmarks.claims.common import ALL_DATA, DATA, Sizes


def encodings(number: int, sizes: Sizes) -> Claim:
    """Return the claim that codes are unique."""
    arguments = {"count": sizes.images}
    cases = [("the same network with another seed", "VP", "VP")]
    another = "another network: DDPM, trained on discrete levels"
    cases += [(another + data, f"VP{data}", f"DDPM{data}") for data in ALL_DATA]
    checks = []
    for text, first, second in cases:
        uses = Use(first), Use(second, shift=1)
        found = Measurement(latents.codes, uses, arguments)
        text = f"codes by {text}: less than half as far apart as those of other images"
        checks.append(smaller(text, "nearly the same codes", found["same"], found["other"], 2.0))
    text = (
        "Codes of held-out images by two networks that were trained separately. The ratio is the "
        "mean distance between the codes of two different images, one by each network, divided by "
        "that between the codes of the same image."
    )
    return Claim(number, "Unique encodings", "Section 4.3, Appendix D", text, tuple(checks))


LOW = 0.8


def manipulation(number: int, sizes: Sizes) -> Claim:
    """Return the claim about interpolation and temperature."""
    checks = []
    for name, count in (
        ("VP", sizes.images),
        ("zoo/fashion_vp", 4 * sizes.zoo),
        ("zoo/emoji_vp", 4 * sizes.zoo),
    ):
        checks += _of_codes(name, count)
    kept = _temperature("VP", sizes.images)["kept"]
    text = f"digits: codes times {LOW} keep the class of 4 of 5"
    checks.append(Check(text, "pictures", kept, margin=0.8))
    text = (
        "Codes of held-out images by the probability flow; interpolation is spherical. Numbers "
        "stand for pictures: distances to held-out images, root mean square differences, and the "
        "class according to a classifier of clean digits. Pictures of networks of the zoo: "
        "[digits](interpolation.png), [emoji](emoji_interpolation.png)."
    )
    title = "Interpolation and temperature"
    return Claim(number, title, "Figure 3, Section 4.3", text, tuple(checks))


def _of_codes(name: str, count: int) -> list[Check]:
    """Return the checks of a network's codes that need no classifier."""
    between = Measurement(latents.interpolation, (Use(name),), {"count": count})
    heat = _temperature(name, count)
    data, pictures = DATA[name], "Figure 3, pictures"
    text = f"{data}: images halfway between two codes are closer to data than means of two images"
    checks = [smaller(text, pictures, between["codes"], between["pixels"])]
    text = f"{data}: both ends of an interpolation differ by more than twice the largest of 9 steps"
    checks.append(larger(text, pictures, between["ends"], between["step"], 2.0))
    text = f"{data}: codes times {LOW} give less varied images"
    checks.append(smaller(text, "pictures", heat["spread at low"], heat["spread"]))
    return checks


def _temperature(name: str, count: int) -> Measurement:
    return Measurement(latents.temperature, (Use(name),), {"count": count, "low": LOW})


def conditions(number: int, sizes: Sizes) -> Claim:
    """Return the claim about conditional generation."""
    guided = Measurement(
        conditional.guided,
        (Use("VP"),),
        {"count": sizes.guided, "iterations": sizes.classifier, "strength": 4.0},
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
        text = f"{DATA[name]}: inpainting has a smaller error than samples without a measurement"
        checks.append(smaller(text, "pictures", found["solutions"], found["samples"], 1.1))
        if name == "VP":
            text = "digits: half of the inpainted ones are of the class of the original"
            checks.append(Check(text, "pictures", found["kept"], margin=0.5))
    arguments = {"count": 3 * sizes.zoo}
    found = Measurement(conditional.colorization, (Use("zoo/emoji_vp"),), arguments)
    checks += [
        smaller(
            "emoji: colours are closer to the true ones than those of another emoji",
            "Figure 4, pictures",
            found["solutions"],
            found["others"],
            1.1,
        ),
        larger(
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
