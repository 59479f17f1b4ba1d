"""Stored configs, which are data and name no code, and `load`: a trained model from files."""

from __future__ import annotations

import contextlib
import runpy
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

import pretrained
import sampling
from api.arguments import checked
from api.trained import TrainedModel
from configs import default, folders
from configs.default import Config
from configs.validation import check_domains, validated
from errors import SHORT, InputError, advice, brief, naming, printable
from experiment import Experiment
from options import GIVEN
from pretrained import WITH_CONFIG
from readers.files import NUMBER, check_regular, read_json
from runs import CONFIG, stored_content
from runs.files import tree_checksum, write_json
from runs.training_log import best_snapshot
from sampling import Fitted
from sde_lib import SDE

OWN_NAMES = "If a config file defines names of its own, pass it: load(workdir, config=FILE)."


def load_config(path: str | Path, given: Collection[str] = ()) -> Config:
    """Return the config of a workdir, its config.json, a .safetensors file, or EDM's .pkl.

    A field that names code or another file gets its default, which is printed unless it is `given`;
    a path is kept that this user wrote there (`configs.folders`). Raises InputError, naming the
    file.
    """
    path = Path(path)
    folder = path.parent if path.name == CONFIG else path
    if path.name.endswith(WITH_CONFIG):
        folder, found = None, (str(path), pretrained.read_config(path))
    else:
        found = stored_content(folder)
    if found is None:
        lack = f"has no {CONFIG} and no checkpoint" if path.is_dir() else "does not exist"
        raise InputError(
            f"{path} {lack}. Name another folder, or an experiment, such as "
            "--config=configs/vp/digits_ddpmpp_continuous.py."
        )
    source, content = found
    with naming(source):
        config = default.from_json(content)
        for problem in check_domains(config):
            raise InputError(problem)
        refused = {
            name: value
            for name, value in default.not_data(config).items()
            if folder is None or not folders.is_own(folder, name, value)
        }
        config = validated(default.reset(config, refused), num_devices=1)
        config = default.from_json(config.to_dict())
    shown = [name for name in refused if name not in given]
    if shown:
        values = ", ".join(f"{name} = {SHORT.repr(refused[name])}" for name in shown)
        flags = " ".join(f"--config.{name}=..." for name in shown)
        print(
            f"NOTE: not used from {printable(source)}: {values}. A config in a file may name "
            f"neither code nor other files; to set them: {flags}",
            flush=True,
        )
    return config


@checked
def load(
    workdir: str | Path | None = None,
    *,
    config: str | Path | Config | None = None,
    checkpoint: int | str | Path | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
      workdir: a folder that `main.py --mode=train` or `--mode=import` has written, or a file that
        states its config: a .safetensors file of `--mode=export`, or a .pkl file of EDM; or the
        name of a network of zoo/, such as "digits_vp".
      config: an ml_collections config, or the file of one; needed for other files.
      checkpoint: the number of a checkpoint of the workdir, by default the newest or, of
        `ss.train` with patience, that of the lowest held-out loss; or a file or folder of another
        code base (`--mode=import`), to be used with `config`.

    The model uses the first device. Raises InputError if something cannot be read or does not fit.
    """
    workdir = None if workdir is None else default.find_network(str(workdir))
    if workdir is not None and Path(workdir).suffix in WITH_CONFIG:
        workdir, checkpoint = None, workdir
        config = load_config(checkpoint) if config is None else config
    if workdir is not None:
        if isinstance(checkpoint, (str, Path)):
            raise InputError(
                f"checkpoint = {str(checkpoint)!r}: with a workdir it must be a number; a file "
                "needs config instead of the workdir."
            )
        if config is None and stored_content(Path(workdir)) is None:
            raise InputError(
                f"{workdir} holds no model: it has neither config.json nor a checkpoint. Pass "
                "another folder or a network, such as 'digits_vp', or train one by --mode=train."
                f"{default.nearest_network(workdir)}"
            )
        with advice(OWN_NAMES) if config is None else contextlib.nullcontext():
            found_config = load_config(workdir) if config is None else read_config_file(config)
            experiment = Experiment(found_config, jax.devices()[:1])
        settings = found_config.training
        if checkpoint is None and settings.patience and found_config.data.dataset == GIVEN:
            checkpoint = best_snapshot(workdir, settings.snapshot_freq)
        found, params = experiment.trained(str(workdir), checkpoint)
        experiment.fitted = read_schedules(workdir, params, experiment.sde)
        experiment.load_classifier(workdir, optional=True)
        return experiment.trained_model(params, found.step)
    if config is None or checkpoint is None:
        raise InputError("load needs a workdir, or both config and checkpoint.")
    experiment = Experiment(read_config_file(config), jax.devices()[:1])
    trained = pretrained.read(str(checkpoint), experiment.network, experiment.config)
    params = jax.tree.map(jnp.asarray, trained.ema)
    experiment.fitted = read_schedules(str(checkpoint), params, experiment.sde)
    return experiment.trained_model(params, trained.step)


def read_config_file(config: str | Path | Config) -> Config:
    """Return a config: an object, or that of a Python file with get_config(), which is executed."""
    if isinstance(config, ml_collections.ConfigDict):
        return config
    path = default.find_file(str(config))
    check_regular(path, "config")
    if not path.endswith(".py"):
        raise InputError(f"config = {str(config)!r} must be a Python file (.py) or a config.json.")
    try:
        module = SimpleNamespace(**runpy.run_path(path))
        if not hasattr(module, "get_config"):
            raise AttributeError("it does not define a function get_config()")
        found = module.get_config()
    except Exception as error:  # A config file may raise anything.
        problem = f"{type(error).__name__}: {brief(error)}"
        raise InputError(f"config = {str(config)!r} cannot be read: {problem}") from error
    if not isinstance(found, ml_collections.ConfigDict):
        raise InputError(
            f"config = {str(config)!r}: get_config() returned {type(found).__name__}, but it must "
            "return an ml_collections.ConfigDict."
        )
    return found


# --- fitted noise levels --------------------------------------------------------------------------

SCHEDULES = [{"parameters": int, "sampler": str, "levels": [NUMBER]}]
"""Of a file of them: the checksum of the parameters that each entry was fitted to."""


def schedules_of(source: str | Path) -> Path:
    """Return the file of fitted noise levels of a workdir, or of a file of parameters."""
    source = Path(source)
    return source / "schedules.json" if source.is_dir() else source.with_suffix(".schedules.json")


def read_schedules(source: str | Path, params: Any, sde: SDE) -> tuple[Fitted, ...]:
    """Return the levels that were fitted to these parameters, and print what uses them.

    Raises InputError for a damaged file, and for levels that the sampler cannot take.
    """
    path, found = schedules_of(source), []
    if not path.exists():
        return ()
    checksum, entries = tree_checksum(params), read_json(path, SCHEDULES)
    with naming(str(path)):
        for entry in entries:
            if entry["parameters"] == checksum:
                fitted = Fitted(entry["sampler"], tuple(map(float, entry["levels"])))
                sampling.make(fitted.sampler, sde, schedule=fitted.levels)  # Checks them.
                found.append(fitted)
    uses = ", ".join(f"{each.sampler!r} with {each.steps} steps" for each in found)
    note = f"it has the noise levels of {uses} for this network"
    if not found:
        note = "not used, since other parameters were fitted; repeat --mode=fit_schedule"
    print(f"NOTE: {path}: {note}.", flush=True)
    return tuple(found)


def write_schedule(source: str | Path, params: Any, fitted: Fitted) -> Path:
    """Add levels that were fitted to these parameters to the file, and return it.

    They replace those of the same parameters, solver and steps.
    """
    path = schedules_of(source)
    new = {"parameters": tree_checksum(params), **fitted._asdict()}
    before = read_json(path, SCHEDULES) if path.exists() else []

    def use(entry: dict[str, Any]) -> tuple[Any, ...]:
        return entry["parameters"], entry["sampler"], len(entry["levels"])

    write_json(path, [*(each for each in before if use(each) != use(new)), new])
    return path
