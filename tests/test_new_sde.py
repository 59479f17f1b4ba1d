"""The SDE that docs/extending.md adds: a network is trained with it, and draws digits."""

import re

import pytest

import evaluation
import sde_lib
import training
from configs.vp import digits_ddpmpp_continuous
from tests.documented import ROOT, snippets

SAMPLERS = {
    "solver": {"sampling.method": "solver"},
    "pc": {"sampling.method": "pc", "sampling.predictor": "reverse_diffusion"},
}


@pytest.fixture(scope="module")
def cosine():
    """The SDE of the page, under the name 'cosine'."""
    (code,) = [text for text in snippets(ROOT / "docs" / "extending.md") if "Cosine" in text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sde_lib.SDES, "cosine", None)
        exec(code, {"__name__": "own"})
        yield "cosine"


def config(cosine, **changes):
    found = digits_ddpmpp_continuous.get_config()
    found.training.update(sde=cosine, n_iters=1000, snapshot_freq=1000, snapshot_sampling=False)
    found.eval.update(enable_loss=False, enable_bpd=False, num_samples=120)
    found.update_from_flattened_dict(changes)
    return found


@pytest.fixture(scope="module")
def workdir(cosine, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("cosine"))
    training.train(config(cosine), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_are_digits(cosine, workdir, name):
    """Noise has a distance of 7 from the digits; images of another trained network have 0.5."""
    result = evaluation.evaluate(config(cosine, **SAMPLERS[name]), workdir, name)[1]
    assert result["metrics"]["frechet"]["value"] < 1.5


@pytest.mark.slow
def test_the_unstable_sampler_is_refused(cosine, workdir):
    changes = {"sampling.method": "pc", "sampling.predictor": "euler_maruyama"}
    message = re.escape("step 1 of 250 of the sampler is unstable")
    with pytest.raises(evaluation.InputError, match=message):
        evaluation.evaluate(config(cosine, **changes), workdir, "unstable")
