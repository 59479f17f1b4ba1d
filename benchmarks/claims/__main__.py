"""Reproduce the paper's claims on small real data, and write docs/claims.md.

python -m benchmarks.claims --folder=DIR [--claim=3,6] [--seeds=6]

It takes hours on two cores. A run that is stopped resumes from DIR. The page has the verdicts of
all seeds, and those of either half of them.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks.claims import page, table
from benchmarks.claims.common import TINY, Sizes
from benchmarks.claims.networks import Store
from benchmarks.claims.run import Run, measurements
from benchmarks.parts import Records

SEEDS = 6  # Each half has three.
FLAGS = flags.FLAGS
flags.DEFINE_string("folder", None, "The folder of networks and results.", required=True)
flags.DEFINE_list("claim", [], "The numbers of the claims to measure; all by default.")
flags.DEFINE_integer("seeds", SEEDS, "The number of seeds.", lower_bound=1)
flags.DEFINE_bool("tiny", False, "Train and measure next to nothing, to test the program.")
flags.DEFINE_string("output", "docs/claims.md", "The page to write.")


def main(_: list[str]) -> None:
    """Train, measure and write the page."""
    logging.set_verbosity(logging.WARNING)
    folder = Path(FLAGS.folder)
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    claims = table.claims(TINY if FLAGS.tiny else Sizes())
    if not set(FLAGS.claim) <= {str(each.number) for each in claims}:
        raise app.UsageError(f"--claim={','.join(FLAGS.claim)}: the claims are 1 to {len(claims)}.")
    if not Path(FLAGS.output).parent.is_dir():
        raise app.UsageError(f"--output={FLAGS.output}: this folder does not exist; create it.")
    store = Store(folder, tiny=FLAGS.tiny)
    records = Records(folder / "results.jsonl")
    run = Run(store, records, range(FLAGS.seeds))
    chosen = [each for each in claims if not FLAGS.claim or str(each.number) in FLAGS.claim]
    needed = measurements(chosen)
    store.train(run.networks(needed))
    run.measure(needed)
    Path(FLAGS.output).write_text(page.page(claims, run))
    print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    app.run(main)
