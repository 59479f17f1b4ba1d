"""Eight simulated CPU devices, exact matrix products, fast compilation with a cache; a browser."""

import gc
import os
import shutil
from importlib.metadata import version
from pathlib import Path

QUICK = ["--xla_backend_optimization_level=0"]
JAXLIB = tuple(map(int, version("jaxlib").split(".")[:2]))
if JAXLIB < (0, 12):  # Later versions abort at unknown flags.
    QUICK.append("--xla_cpu_use_fusion_emitters=false")
    QUICK.append("--xla_cpu_parallel_codegen_split_count=1")  # Splitting takes more CPU time.
os.environ["XLA_FLAGS"] = " ".join([*QUICK, os.environ.get("XLA_FLAGS", "")])

import jax  # noqa: E402
import pytest  # noqa: E402

from tests import array_types  # noqa: E402

array_types.install()  # Before the modules of the project are imported.

import sharding  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".cache" / "jax"))
# Most programs are single operations, of which reading takes half the time of compiling. Workers,
# and tests that state the same computation anew, share them, so that an empty cache gains, too.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_finish():
    """Collect garbage rarely: a pass over JAX's and pytest's objects takes a second.

    With Python's default, these passes take a fifth of the time of tests that trace networks.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 20)


@pytest.fixture(scope="session", autouse=True)
def _two_devices():
    """Use two of the devices unless a test states otherwise: compiling for eight takes long."""
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sharding, "make_mesh", lambda devices=None: make_mesh(devices or jax.devices()[:2])
        )
        yield


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """An empty cache of facts about data files, of the test alone."""
    from readers import cache

    monkeypatch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    """A workdir with the files and the report of an evaluation."""
    from runs import report  # These import the whole project.
    from tests import evaluated

    workdir = tmp_path_factory.mktemp("reported")
    evaluated.write_workdir(workdir)
    report.write(workdir)
    return workdir


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: the system's, or that of `playwright install chromium`."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (requirements-dev.txt)"
    )
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with api.sync_playwright() as playwright:
        found = found or playwright.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("Chromium is not installed; run `playwright install chromium`")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()
