"""Random configs: each one is refused in one message, or builds."""

import math
import time

import hypothesis
import jax
import pytest
from hypothesis import strategies as st

import options
from configs.default import Config, complete
from configs.fields import FIELDS
from errors import InputError
from experiment import Experiment
from tests import tiny

MODES = ("", "restore", "calibrate", "train_classifier")
# Values of every type, near the ends of common ranges, and beyond them.
ODD = st.sampled_from(
    [None, True, False, 0, 1, -1, 2, 3, 7, 2**31, -(2**31), 10**9, 10**30, 0.0, -0.0, 0.5, 1.0]
    + [-0.5, 1e-30, 1e30, math.nan, math.inf, -math.inf, "", "x", "none", "1", "0.5", "\x00"]
    + [(), (0,), (-1,), (1, 2), (1, 2, 4, 8, 16), (0.5,), (math.nan,), ("a",), ((1,),), {}]
    + [{"a": 1}, b"bytes", 1j, range(3), "\n", "a" * 1000]
)


def allowed(name):
    """Values from a field's domain, most of them small."""
    domain = FIELDS[name].domain
    match domain:
        case options.Flag():
            return st.booleans()
        case options.Integer():
            return st.integers(domain.low, min(domain.high, domain.low + 9))
        case options.Real():
            low, high = max(domain.low, -1e6), min(domain.high, 1e6)
            return st.floats(low, high) | st.sampled_from([low, high, 0.5, 1.0])
        case options.Name():
            return st.sampled_from(domain.known) if domain.known else ODD
        case options.AnyOf():
            return st.integers(1, 64) | st.tuples(st.integers(1, 64), st.integers(1, 64)) | ODD
    return ODD


@st.composite
def changes(draw):
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=5, unique=True))
    return {name: draw(allowed(name) | ODD) for name in names}


def build(values, mode):
    """Build everything that commands build before they read images or compile."""
    fields = complete(tiny.config()).to_dict()
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (fields[section] if section else fields)[key] = value
    try:
        config = Config(fields)
    except (TypeError, ValueError):  # ConfigDict refuses some types, as on the command line.
        return None
    return Experiment(config, jax.devices()[:1], mode=mode)


@pytest.mark.long
@hypothesis.settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(changes(), st.sampled_from(MODES))
def test_configs_build_or_are_refused(values, mode):
    start = time.monotonic()
    try:
        build(values, mode)
    except InputError as error:
        message = str(error)
        assert message
        assert "Traceback" not in message
        assert all(len(line) < 500 for line in message.splitlines())
    assert time.monotonic() - start < 60
