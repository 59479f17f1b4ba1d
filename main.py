"""Trains and evaluates score-based generative models.

python main.py --config=configs/vp/digits_ddpmpp_continuous.py --workdir=DIR --mode=train [--config.FIELD=VALUE ...]
"""

import os
import sys
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

import evaluation
import training
from errors import InputError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The experiment; fields as in --config.training.batch_size=64.")
flags.DEFINE_string("workdir", None, "Where checkpoints, logs and results go.")
flags.DEFINE_enum("mode", None, ["train", "eval"], "What to do.")
flags.DEFINE_string("eval_folder", "eval", "Folder for the results of --mode=eval, under the workdir.")
flags.mark_flags_as_required(["config", "workdir", "mode"])


def main(argv: list[str]) -> None:
    """Runs one mode; what the user can put right ends in one sentence and exit code 1."""
    logging.set_verbosity(logging.WARNING)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "score_sde" / "jax"))
    try:
        if argv[1:]:
            raise InputError(f"arguments that are no flags: {' '.join(argv[1:])}.")
        if FLAGS.mode == "train":
            training.train(_config(), FLAGS.workdir)
        else:
            evaluation.evaluate(_config(), FLAGS.workdir, FLAGS.eval_folder)
    except InputError as error:
        sys.exit(f"Error: {error}")


def _config() -> ml_collections.ConfigDict:
    try:
        return ml_collections.ConfigDict(FLAGS.config.to_dict())  # Reads the file's fields, which is when it may fail.
    except OSError as error:
        raise InputError(f"--config cannot be read: {str(error).splitlines()[-1].strip()}") from error


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but a config that cannot be read or has no such field is told in a sentence, too."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())} (in the flags {' '.join(argv[1:])})")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
