"""What commands print while they work."""

import re
import time

import jax
import numpy as np
import pytest

from api.prior import Prior
from runs import progress
from sde_lib import VPSDE
from tests import gaussian


@pytest.fixture
def fast(monkeypatch):
    """Intervals of a twentieth of a second."""
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    monkeypatch.setattr(progress, "_announced", "")


def test_a_long_block_says_what_it_does(fast, monkeypatch, capsys):
    """Its lines become rarer, and its repetition is not announced again."""
    monkeypatch.setattr(progress, "_interval", "{:.0f}".format)
    for seconds in (1.2, 0.2):
        with progress.waiting("a long block"):
            time.sleep(seconds)
    first, *others = capsys.readouterr().out.splitlines()
    assert first == "a long block ..."
    assert set(others) <= {"a long block: 0 so far", "a long block: 1 so far"}
    assert 2 < len(others) < 22
    monkeypatch.setattr(progress, "FIRST", 1.0)
    with progress.waiting("a short block"), progress.counting("steps", 3, "step") as update:
        update(3)
    assert capsys.readouterr().out == ""


def test_a_count_states_the_time_left(fast, capsys):
    """A hundredth of the work took 0.3 s, so that 30 s are left."""
    with progress.counting("drawing", 200, "step", 100) as update:
        time.sleep(0.3)
        update(101)
        time.sleep(0.2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["drawing ...", "drawing: 00:00 so far"]
    line = next(line for line in lines if "101/200" in line)
    assert re.fullmatch(r"drawing: step 101/200, ETA 00:(29|3\d|4\d|5\d)", line)


def test_the_time_left_falls_within_a_unit(fast, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_interval", "{:.2f}".format)
    with progress.counting("drawing", 3, "round") as update:
        time.sleep(0.5)
        update(1)
        time.sleep(0.5)
    lines = capsys.readouterr().out.splitlines()
    left = [float(line.rpartition(" ")[2]) for line in lines if "1/3" in line]
    assert left[0] == pytest.approx(0.95, abs=0.3)
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] - 0.2


def test_an_end_later_than_expected_does_not_repeat_a_time_left(fast, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_interval", "{:.2f}".format)
    with progress.counting("drawing", 2, "step") as update:
        time.sleep(0.2)
        update(1)
        time.sleep(0.8)
    *_, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"drawing: step 1/2, [01]\.\d\d so far", last)


def test_an_outer_block_prints_less_than_an_inner_one(fast, monkeypatch, capsys):
    monkeypatch.setattr(progress, "INTERVAL", 0.2)
    with progress.counting("rounds", 2, "round", announced=True), progress.waiting("a round"):
        time.sleep(1.5)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("a round") for line in lines) >= 4
    assert sum(line.startswith("rounds") for line in lines) <= 2


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress.counting("drawing", 4, "step") as update:
        update(1)
        update(3)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "drawing" in captured.err
    assert "/4" in captured.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "frames"), [("pc", {"corrector": "none"}, True), ("unipc_3", {}, False)]
)
def test_a_loop_that_reports_gives_the_samples_of_one_program(name, options, frames):
    """The same events, evaluations and frames as where all steps are in one compiled program."""
    prior = Prior(gaussian.score(VPSDE(), 0.3, 0.4), VPSDE(), (4,))
    sampler, key = prior.make_sampler(name, 25, trajectory=frames, **options), jax.random.key(0)
    found = prior.draw(sampler, 5, key)
    whole = jax.jit(lambda key: prior.draw(sampler, 5, key))(key)
    assert bool(len(found.frames)) == frames
    for part, expected in zip(found, whole, strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-4, atol=1e-4)
