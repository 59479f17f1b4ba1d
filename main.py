"""Trains and evaluates score-based generative models, and takes checkpoints from and to other code bases.

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
import report
import sharding
import training
from auxiliary import classification, dequantization
from configs.default import complete
from errors import InputError
from metrics import reference_statistics
from modes import conversion, inspection, latents, restoration
from readers import published

FLAGS = flags.FLAGS
MODES = {
    "train": training.train,
    "eval": lambda config, workdir: evaluation.evaluate(
        config, workdir, FLAGS.eval_folder or "eval"
    ),
    "import": lambda config, workdir: conversion.import_checkpoint(
        config, workdir, _flag("source")
    ),
    "export": lambda config, workdir: conversion.export_checkpoint(
        config, workdir, _flag("target"), FLAGS.checkpoint
    ),
    "encode": lambda config, workdir: latents.encode(config, workdir, FLAGS.checkpoint),
    "train_classifier": classification.train,
    "train_dequantizer": lambda config, workdir: dequantization.train(
        config, workdir, FLAGS.checkpoint
    ),
    "inspect_data": inspection.inspect,
    "prepare_data": lambda config, workdir: published.prepare(complete(config).data),
    "restore": lambda config, workdir: restoration.restore(
        config, workdir, FLAGS.checkpoint, FLAGS.eval_folder
    ),
    "fid_stats": reference_statistics.fid_stats,
    "interpolate": lambda config, workdir: latents.interpolate(config, workdir, FLAGS.checkpoint),
    "report": lambda config, workdir: print(
        report.write(workdir, FLAGS.eval_folder or "eval")
    ),
}

config_flags.DEFINE_config_file(
    "config", None, "The experiment; fields as in --config.training.batch_size=64."
)
flags.DEFINE_string("workdir", None, "Where checkpoints, logs and results go.")
flags.DEFINE_enum("mode", None, list(MODES), "What to do.")
flags.DEFINE_string(
    "eval_folder",
    None,
    "Folder for the results of --mode=eval and report ('eval'), or restore (by the task).",
)
flags.DEFINE_string(
    "source", None, "The checkpoint to import: a file of the official code, or a diffusers folder."
)
flags.DEFINE_string(
    "target", None, "The file to export to: .pth (PyTorch), .safetensors, or else Flax."
)
flags.DEFINE_integer(
    "checkpoint", None, "The checkpoint to export, encode with, ...; the newest by default."
)
flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if several are started by hand; docs/scaling.md."
)
flags.DEFINE_integer("num_processes", None, "How many processes are started by hand.")
flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0 on.")
flags.mark_flags_as_required(["config", "workdir", "mode"])


def main(argv: list[str]) -> None:
    """Runs one mode; what the user can put right ends in one sentence and exit code 1."""
    logging.set_verbosity(logging.WARNING)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update(
            "jax_compilation_cache_dir", str(Path.home() / ".cache" / "score_sde" / "jax")
        )
    jax.config.update(
        "jax_persistent_cache_min_compile_time_secs", 0
    )  # A start has hundreds of small programs.
    try:
        if argv[1:]:
            raise InputError(f"arguments that are no flags: {' '.join(argv[1:])}.")
        sharding.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        MODES[FLAGS.mode](_config(), FLAGS.workdir)
    except InputError as error:
        sys.exit(f"Error: {error}")


def _flag(name: str) -> str:
    if FLAGS[name].value is None:
        raise InputError(f"--mode={FLAGS.mode} needs --{name}: {FLAGS[name].help}")
    return FLAGS[name].value


def _config() -> ml_collections.ConfigDict:
    try:
        return ml_collections.ConfigDict(
            FLAGS.config.to_dict()
        )  # Reads the file's fields, which is when it may fail.
    except OSError as error:
        raise InputError(
            f"--config cannot be read: {str(error).splitlines()[-1].strip()}"
        ) from error


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, but a config that cannot be read or has no such field is told in a sentence, too."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        sys.exit(f"Error: {' '.join(str(error).split())} (in the flags {' '.join(argv[1:])})")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
