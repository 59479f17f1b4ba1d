"""Files of a run: what they depend on, and how they are written and read.

A workdir or evaluation folder holds the config it was made with; a command with another config is
refused where a field differs that its files depend on. Each file that a later command may reuse
holds a description of what it was made from, and is computed again if that differs.
"""

from readers.files import read_json
from runs.depends import DEPENDENCIES, Depends, dependencies
from runs.files import (
    Arrays,
    is_current,
    load_arrays,
    save_arrays,
    write_arrays,
    write_atomically,
    write_json,
    write_picture,
    write_text,
    writing,
)
from runs.lock import (
    CONFIG,
    ENVIRONMENTS,
    LOCK,
    check_config,
    check_workdir,
    claim,
    locked,
    owned,
    results_folder,
    stored_config,
    stored_content,
)
from runs.rounds import load_rounds, round_paths, run_rounds

__all__ = [
    "CONFIG",
    "DEPENDENCIES",
    "ENVIRONMENTS",
    "LOCK",
    "Arrays",
    "Depends",
    "check_config",
    "check_workdir",
    "claim",
    "dependencies",
    "is_current",
    "load_arrays",
    "load_rounds",
    "locked",
    "owned",
    "read_json",
    "results_folder",
    "round_paths",
    "run_rounds",
    "save_arrays",
    "stored_config",
    "stored_content",
    "write_arrays",
    "write_atomically",
    "write_json",
    "write_picture",
    "write_text",
    "writing",
]
