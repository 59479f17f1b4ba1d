"""Train, sample, evaluate and invert score-based generative models.

python main.py --config=configs/vp/digits_ddpmpp_continuous.py --workdir=DIR --mode=train \
    [--config.FIELD=VALUE ...]

docs/usage.md describes the modes and flags.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import errors

if __name__ == "__main__":
    errors.start_command()  # Before the other imports.

from absl import app, flags, logging

import score_sde
from commands import command_line
from errors import InputError, nearest
from options import choose

FLAGS = flags.FLAGS
PACKAGE = f"{__package__}." if __package__ else ""  # An installed package has all modules in it.
PROGRAM = "score-sde" if PACKAGE else "python main.py"


class Command(NamedTuple):
    """A mode: 'module:name' of its function (config, workdir, **arguments), imported when it runs;
    its flags, with the arguments or config fields that they become; and those that must be given.
    """

    function: str
    flags: Mapping[str, str] = MappingProxyType({})
    required: tuple[str, ...] = ()


CHECKPOINT = {"checkpoint": "number"}
RESULTS = CHECKPOINT | {"eval_folder": "folder"}
DRAWN = {"classes": "config.guidance.classes", "seed": "config.seed", "count": "count"}
EXPORTED = {"target": "target", "average_only": "average_only"}

COMMANDS = {
    "train": Command("training:train"),
    "eval": Command("evaluation:run", RESULTS),
    "report": Command("evaluation:write_report", {"eval_folder": "folder"}),
    "import": Command("commands.conversion:import_checkpoint", {"source": "source"}, ("source",)),
    "export": Command("commands.conversion:export_checkpoint", EXPORTED | CHECKPOINT, ("target",)),
    "ema": Command("commands.averaging:reconstruct", {"target": "target"} | CHECKPOINT),
    "encode": Command("commands.latents:encode", CHECKPOINT),
    "interpolate": Command("commands.latents:interpolate", CHECKPOINT),
    "sample": Command("commands.samples:sample", DRAWN | RESULTS | {"source": "source"}),
    "fit_schedule": Command("commands.schedules:fit", {"source": "source"} | CHECKPOINT),
    "restore": Command("commands.restoration:restore", RESULTS),
    "calibrate": Command("commands.calibration:calibrate", RESULTS),
    "train_classifier": Command("training.classifier:train"),
    "inspect_data": Command("commands.inspection:inspect"),
    "prepare_data": Command("commands.inspection:prepare"),
    "fid_stats": Command("metrics.reference_statistics:fid_stats"),
}
"""By --mode."""

flags.DEFINE_string(
    "config", None, "The config: a Python file, or a config.json; --config.FIELD=VALUE changes it."
)
flags.DEFINE_string("workdir", None, "The folder of checkpoints, logs and results.")
flags.DEFINE_string("mode", None, f"One of {', '.join(COMMANDS)}.")
flags.DEFINE_string("eval_folder", None, "The folder of results; by default 'eval' or the task.")
flags.DEFINE_string(
    "source",
    None,
    "The checkpoint to import, or to sample from: a file of the official code, of EDM or of "
    "--mode=export, or a diffusers folder.",
)
flags.DEFINE_string("target", None, "The file to export to: .pth (PyTorch), .safetensors, or Flax.")
flags.DEFINE_bool("average_only", False, "Export the moving average only, in half precision.")
flags.DEFINE_integer("checkpoint", None, "The number of the checkpoint; by default the newest.")
flags.DEFINE_integer("count", None, "The number of images to draw; 64 by default.")
flags.DEFINE_list("classes", None, "The classes of the images to draw in turn, such as 0,1,2.")
flags.DEFINE_integer("seed", None, "The seed of the images to draw, in place of --config.seed.")
flags.DEFINE_bool("version", False, "Print the version and exit.")
flags.DEFINE_bool("list", False, "Print the experiments and the trained networks, and exit.")
flags.DEFINE_bool("completion", False, "Print a line that completes score-sde in bash, and exit.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; docs/accelerators.md.")
flags.DEFINE_integer("num_processes", None, "The number of processes started by hand.")
flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")


def main(argv: list[str]) -> None:
    """Run one mode, with the fields of the config that `parse_flags` returns.

    An error that the user can correct is one message and exit code 1.
    """
    import jax  # Not before `parse_flags` has checked them: it takes a second.

    import sharding

    _set_up()
    try:
        sharding.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        run(COMMANDS[FLAGS.mode], argv[1:])
        sys.stdout.flush()  # Its errors would be a traceback at exit.
    except InputError as error:
        errors.fail(str(error))
    except OSError as error:
        where = f"{error.filename} cannot be used: " if error.filename else ""
        errors.fail(f"{where}{error.strerror or errors.brief(error)}. Fix this and rerun.")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        errors.fail(
            f"the computation failed: {errors.brief(error).rstrip('.')}. If memory is exhausted, "
            "lower training.batch_size, eval.batch_size, classifier.batch_size or the size of the "
            "network, raise training.accumulate, set training.remat or training.shard_params, or "
            "use more devices."
        )
    except KeyboardInterrupt:  # From training, which has saved its state.
        sys.exit(128 + signal.SIGINT)


def _set_up() -> None:
    """Set how the process prints, logs and compiles."""
    import jax

    logging.set_verbosity(logging.WARNING)
    errors.hide_background_errors()
    for stream in (sys.stdout, sys.stderr):  # Characters that a terminal lacks become escapes.
        reconfigure = getattr(stream, "reconfigure", None)  # A notebook's stream has none.
        if reconfigure:
            reconfigure(errors="backslashreplace")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = errors.cache_folder() / "score_sde" / "jax"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    # A damaged entry is compiled again.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    # A start compiles hundreds of small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags, of which a wrong one is a one-line error; return fields of the config."""
    return command_line.parse_flags(argv, check_flags)


def check_flags(argv: list[str]) -> None:
    """Raise InputError for a flag that is missing, empty, or not one of the mode."""
    texts = {"version": lambda: score_sde.__version__, "list": _listed, "completion": _completion}
    for name, text in texts.items():
        if FLAGS[name].value:
            print(text())
            sys.exit(0)
    if argv[1:]:
        hint = nearest(argv[1], COMMANDS, "--mode={}")
        raise InputError(f"unexpected positional arguments: {' '.join(argv[1:])}.{hint}")
    if FLAGS.mode == "sample" and FLAGS.source and FLAGS.workdir is None:
        FLAGS.workdir = "samples"
    missing = [f"--{name}" for name in ("mode", "workdir") if FLAGS[name].value is None]
    if missing and FLAGS.mode in (None, *COMMANDS):
        raise InputError(
            f"{' and '.join(missing)} must be given, as in {PROGRAM} --config=configs/vp/"
            "digits_ddpmpp_continuous.py --workdir=digits --mode=train. Modes: "
            f"{', '.join(COMMANDS)}. --help describes all flags."
        )
    command = choose(COMMANDS, FLAGS.mode, "--mode")
    if not FLAGS.workdir:  # As --workdir=$DIR without DIR, which would be the current folder.
        raise InputError("--workdir is empty; it must name a folder.")
    for name in ("workdir", "source", "target", "eval_folder"):
        if not (FLAGS[name].value or "").isprintable():  # It is printed in many places.
            raise InputError(f"--{name}={FLAGS[name].value} has control characters; rename it.")
    for name in {name for each in COMMANDS.values() for name in each.flags}:
        if FLAGS[name].present and name not in command.flags:
            modes = ", ".join(mode for mode, each in COMMANDS.items() if name in each.flags)
            hint = " To train on from a file, import it first." if name == "source" else ""
            raise InputError(f"--{name} only applies to --mode={modes}, not {FLAGS.mode}.{hint}")
    for name in command.required:
        if FLAGS[name].value is None:
            raise InputError(f"--mode={FLAGS.mode} needs --{name}: {FLAGS[name].help}")


def _listed() -> str:
    """Return the experiments with the first lines of their files, and the networks of zoo/."""
    root = Path(__file__).parent
    lines = ["For --config:"]
    for path in sorted(root.glob("configs/*/**/*.py")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].strip('"')
        lines.append(f"  {path.relative_to(root)}  {title}")
    names = [path.stem for path in sorted(root.glob("zoo/*.safetensors"))]
    return "\n".join([*lines, "For --source and score_sde.load:", *(f"  {each}" for each in names)])


def _completion() -> str:
    """Return a command of bash with the flags, their names of modes and files, and the fields."""
    from configs.fields import FIELDS

    flags_here = (f"--{flag.name}" for flag in FLAGS.get_flags_for_module(__name__))
    names = (line.split()[0] for line in _listed().splitlines() if line.startswith(" "))
    words = [*flags_here, *(f"--config.{name}" for name, _ in FIELDS.items()), *COMMANDS, *names]
    return f"complete -o default -W '{' '.join(words)}' score-sde"


def run(command: Command, fields: Sequence[str]) -> None:
    """Call the function of a mode; flags that are not given keep its defaults."""
    given = {name: FLAGS[name].value for name in command.flags if FLAGS[name].value is not None}
    if FLAGS.classes is not None and "classes" in given:
        given["classes"] = f"({','.join(FLAGS.classes)},)"
    of_config = {name for name in given if command.flags[name].startswith("config.")}
    more = [f"{command.flags[name].removeprefix('config.')}={given[name]}" for name in of_config]
    config, changed = command_line.read_config([*fields, *more])
    arguments = {command.flags[name]: FLAGS[name].value for name in given.keys() - of_config}
    function = pkgutil.resolve_name(PACKAGE + command.function)
    if "given" in inspect.signature(function).parameters:
        arguments["given"] = changed
    function(config, FLAGS.workdir, **arguments)


def cli() -> None:
    """Run the command line; an installed package calls this as the command `score-sde`."""
    errors.start_command()
    if __name__ != "__main__":  # --help describes the module that Python runs.
        sys.modules["__main__"].__doc__ = (__doc__ or "").replace("python main.py", PROGRAM)
        for flag in FLAGS.get_flags_for_module(__name__):
            FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    cli()
