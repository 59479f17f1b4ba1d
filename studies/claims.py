"""Measure the paper's claims on small real data, and write the tables of docs/claims.md.

python -m studies.claims --folder=DIR [--claim=3,6] [--seeds=6]

It takes hours on two cores. A run that is stopped resumes from DIR. `claims_table.py` has the
claims, `claims_measured.py` what is measured and `claims_networks.py` the networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from errors import InputError
from studies import claims_checks, common
from studies.claims_table import CLAIMS

OPTIONS = {
    "folder": "",  # of networks and results
    "claim": "1,2,3,4,5,6,7,8,9",
    "seeds": 6,  # Each half has three.
    "tiny": False,  # Train and measure next to nothing, to test the program.
    "page": "docs/claims.md",
}


def main(options: argparse.Namespace) -> None:
    """Train, measure and write the tables of the chosen claims, and the summary of all."""
    folder, page, chosen = Path(options.folder), Path(options.page), options.claim.split(",")
    numbered = {str(number): make for number, make in enumerate(CLAIMS.values(), 1)}
    if not set(chosen) <= numbered.keys():
        raise InputError(f"--claim={options.claim}: the claims are 1 to {len(CLAIMS)}.")
    if options.seeds < 1:
        raise InputError(f"--seeds={options.seeds} must be at least 1.")
    if not page.is_file():
        raise InputError(f"--page={page} is not a file; its tables are replaced.")
    common.compilation_cache(folder)
    study = claims_checks.Study(folder, range(options.seeds), tiny=options.tiny)
    for number in chosen:
        command = f"python -m studies.claims --folder=DIR --claim={number}"
        lines = claims_checks.table(numbered[number](study))
        about = f"{common.provenance(command)} Seeds: {options.seeds}."
        common.write_blocks(page, {f"claim {number}": [about, "", *lines]})
    summary = claims_checks.summary(page.read_text(), list(CLAIMS))
    common.write_blocks(page, {"summary": summary})


if __name__ == "__main__":
    common.run(main, OPTIONS)
