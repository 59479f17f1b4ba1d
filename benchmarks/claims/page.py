"""docs/claims.md, from recorded results alone."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Sequence

from benchmarks.claims.checks import Check, Claim
from benchmarks.claims.networks import SNAPSHOT
from benchmarks.claims.run import Run
from benchmarks.claims.verdicts import FAILS, HOLDS, UNKNOWN, Estimate, combine, verdict
from benchmarks.markdown import header, machine, row

COMMAND = "python -m benchmarks.claims --folder=DIR"
MISSING = "not measured"
WIDTH = 100


def page(claims: Sequence[Claim], run: Run) -> str:
    """Return the page."""
    seeds = _count(len(run.seeds))
    text = TEXT.format(machine=machine(), seeds=seeds, steps=2 * SNAPSHOT)
    lines = [text, *_summary(claims, run)]
    for claim in claims:
        lines += ["", *_section(claim, run)]
    return "\n".join([*lines, "", LIMITATIONS.strip()]) + "\n"


def _summary(claims: Sequence[Claim], run: Run) -> list[str]:
    """Return the section that counts verdicts, and those that the halves of the seeds share."""
    verdicts = (HOLDS, FAILS, UNKNOWN, MISSING)
    lines = ["## Summary", "", SUMMARY_TEXT.strip(), ""]
    lines += header("claim", *verdicts, "same in both halves", "opposite")
    groups = [(f"{claim.number}. {claim.title}", claim.checks) for claim in claims]
    groups.append(("all", tuple(check for claim in claims for check in claim.checks)))
    for name, checks in groups:
        found = Counter(verdict_of(check, run) for check in checks)
        pairs = [pair for check in checks if (pair := of_halves(check, run))]
        same = sum(first == second for first, second in pairs)
        opposite = sum(set(pair) == {HOLDS, FAILS} for pair in pairs)
        counts = [str(found[each]) for each in verdicts]
        lines.append(row(name, *counts, f"{same} of {len(pairs)}", str(opposite)))
    return lines


def verdict_of(check: Check, run: Run, indices: range | None = None) -> str:
    """Return the verdict on a check from all seeds, or from those of `indices`; or MISSING."""
    numbers = run.numbers(check.quantities, indices)
    return MISSING if numbers is None else verdict(check.estimate(numbers), check.threshold)


def of_halves(check: Check, run: Run) -> tuple[str, ...]:
    """Return the verdicts from either half of the seeds; () without halves or measurements."""
    halves = run.halves(check.quantity.measurement) or ()
    found = tuple(verdict_of(check, run, half) for half in halves)
    return () if MISSING in found else found


def _section(claim: Claim, run: Run) -> list[str]:
    """Return the section of a claim."""
    lines = [f"## {claim.number}. {claim.title}", "", f"Source: {claim.source}.", ""]
    lines += [*textwrap.wrap(claim.text, WIDTH), ""]
    lines += ["```", f"{COMMAND} --claim={claim.number}", "```", ""]
    lines += header("claim", "paper", "here", "number", "margin", "verdict", "halves")
    return lines + [_row(check, run) for check in claim.checks]


def _row(check: Check, run: Run) -> str:
    numbers = run.numbers(check.quantities)
    if numbers is None:
        return row(check.text, check.paper, "", "", f"{check.margin:g}", MISSING, "")
    estimate = check.estimate(numbers)
    shown = run.numbers(check.values) if check.values else None
    values = " against ".join(_format(combine(each)) for each in zip(*(shown or [])))
    number = _ratio(estimate) if check.divisor else _format(estimate)
    found = verdict(estimate, check.threshold)
    halves = ", ".join(of_halves(check, run))
    return row(check.text, check.paper, values, number, f"{check.margin:g}", found, halves)


def _ratio(log: Estimate) -> str:
    """Format a ratio from its logarithm; the error is relative to first order."""
    return f"ratio {_format(Estimate(math.exp(log.value), math.exp(log.value) * log.stderr))}"


def _format(estimate: Estimate) -> str:
    """Format a number and its standard error with two digits of the error."""
    if not estimate.stderr:
        return f"{estimate.value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(estimate.stderr)))
    return f"{estimate.value:.{digits}f} +- {estimate.stderr:.{digits}f}"


def _count(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


TEXT = """# The paper's claims on small data

`make claims` trains small networks on scikit-learn's handwritten digits (1,438 training images of
8x8 pixels), with {seeds}, measures the claims of arXiv:2011.13456, and writes this page. Rows that
name Fashion-MNIST or emoji repeat a measurement there with one seed: claims 3, 7 and 8 with the
networks in [zoo](zoo.md), at 28x28 and 32x32 pixels, and the others with networks for images that
are made smaller, to 16x16. The scale is far below that of the paper: these results show whether a
claim also holds here, not whether the paper's figures are right.

- **Quality** is the sliced Wasserstein-2 distance to held-out images, at most 1,000, as in
  [sampling](sampling.md): along each value of a pixel and as many random directions, as root mean
  square. The classes of held-out digits are weighted as in training. Smaller is better. The paper
  has FID on CIFAR-10.
- **Networks** of one claim have the same data, width, optimizer, batches of 64 images and number
  of training steps: {steps}, unless a claim states otherwise. `benchmarks/claims/networks.py` lists
  them.
- **Errors** are standard errors. Their square is the variance over seeds plus the mean square of
  the errors over samples, divided by the number of seeds. With one seed the error is that over
  samples alone.
- **Margins** were fixed before the first measurement, in `benchmarks/claims/`. A claim holds if its
  number is above the margin by two standard errors, and does not hold if it is below by two;
  otherwise we cannot tell. The margin of a ratio is 1 for "better" and 0.9 for "as good", unless
  the row states another factor.
- **Order.** The columns "paper" and "here" have the numbers in the order of the claim.
- **Added later**, with the same margins, after other rows had been measured: those of claims 1 to 3
  with 250 or 500 steps, those of claim 4 with `longer`, twice as many residual blocks in claim 5,
  Fashion-MNIST and emoji in all claims but 3 and 8, and more images for colorization.
- **More samples and seeds**: the first page had 250 samples in claims 1 to 3, too few to tell many
  samplers apart, PC with 200 evaluations in claim 9, and three seeds. Now there are 1,000 samples,
  PC in claim 9 has the paper's 2,000 evaluations, with 500 samples of both sides, and there are
  three more seeds. Margins are the same.
- **Measured again**: bits/dim of claims 4 and 9, which an error had biased by up to 0.3: the probes
  of the trace were drawn from the keys of the dequantizing noise.
- **Code**: the committed version of this page was measured with the networks, samplers and
  likelihoods of commit 0e813a0. Later changes alter results by rounding, and use other random
  numbers for discrete levels (claim 5) and posterior samples (claim 8).
- **Data**: Fashion-MNIST and emoji must be installed ([data](data.md)); without them, their rows
  are not measured.

Measured on {machine}. The commands can be stopped and started
again. Results are cached in DIR under a hash of the configs and the code, so that a change of
either measures again.
"""

SUMMARY_TEXT = """
The last two columns tell whether other seeds give the same verdict: the seeds are divided into two
halves, and each half gives a verdict of its own (column "halves" below). Opposite verdicts are
"holds" with one half and "does not hold" with the other. Rows with one seed are not compared.
"""

LIMITATIONS = """## Limitations

- The networks have 0.2 million parameters, images of 8x8 or 16x16 pixels and a few minutes of
  training; those of the zoo have 1.3 and 1.8 million, 28x28 and 32x32 pixels and about an hour.
  There is little fine detail, for which the samplers and architectures of the paper differ most.
- With few seeds the standard error itself is uncertain. With many checks, some verdicts are wrong
  by chance: about 1 in 40 on either side for a number that is exactly at its margin.
- The error estimate takes the compared samples for independent. Some share their initial noise, so
  that the true errors are smaller.
- Claim 6 compares each network with that of the next seed, so that the halves share two networks.
"""
