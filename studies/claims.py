"""Measure the paper's claims on small real data, and write the tables of docs/claims.md.

python -m studies.claims --folder=DIR [--claim=3,6] [--seeds=6]

It takes hours on two cores. A run that is stopped resumes from DIR. `claims_table.py` has the
claims, `claims_measured.py` what is measured and `claims_networks.py` the networks.
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags, logging

from studies import claims_checks, common
from studies.claims_table import CLAIMS

SEEDS = 6  # Each half has three.
FLAGS = flags.FLAGS
flags.DEFINE_string("folder", None, "The folder of networks and results.", required=True)
flags.DEFINE_list("claim", [], "The numbers of the claims to measure; all by default.")
flags.DEFINE_integer("seeds", SEEDS, "The number of seeds.", lower_bound=1)
flags.DEFINE_bool("tiny", False, "Train and measure next to nothing, to test the program.")
flags.DEFINE_string("page", "docs/claims.md", "The page whose tables are written.")


def main(_: list[str]) -> None:
    """Train, measure and write the tables of the chosen claims, and the summary of all."""
    logging.set_verbosity(logging.WARNING)
    folder, page = Path(FLAGS.folder), Path(FLAGS.page)
    numbered = {str(number): make for number, make in enumerate(CLAIMS.values(), 1)}
    if not set(FLAGS.claim) <= numbered.keys():
        raise app.UsageError(f"--claim={','.join(FLAGS.claim)}: the claims are 1 to {len(CLAIMS)}.")
    if not page.exists():
        raise app.UsageError(f"--page={page}: there is no such file.")
    common.compilation_cache(folder)
    study = claims_checks.Study(folder, range(FLAGS.seeds), tiny=FLAGS.tiny)
    for number in FLAGS.claim or numbered:
        command = f"python -m studies.claims --folder=DIR --claim={number}"
        lines = claims_checks.table(numbered[number](study))
        about = f"{common.provenance(command)} Seeds: {FLAGS.seeds}."
        common.write_blocks(page, {f"claim {number}": [about, "", *lines]})
    summary = claims_checks.summary(page.read_text(), list(CLAIMS))
    common.write_blocks(page, {"summary": summary})


if __name__ == "__main__":
    app.run(main)
