"""Files of a run: how they are written and read, and by which process.

Each file that a later command may reuse holds a description of what it was made from, and is
computed again if that differs.
"""

from runs.files import (
    Arrays,
    Depends,
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
    locked,
    make_folder,
    results_folder,
    stored_content,
)
from runs.rounds import load_rounds, round_paths, run_rounds

__all__ = [
    "CONFIG",
    "ENVIRONMENTS",
    "LOCK",
    "Arrays",
    "Depends",
    "load_arrays",
    "load_rounds",
    "locked",
    "make_folder",
    "results_folder",
    "round_paths",
    "run_rounds",
    "save_arrays",
    "stored_content",
    "write_arrays",
    "write_atomically",
    "write_json",
    "write_picture",
    "write_text",
    "writing",
]
