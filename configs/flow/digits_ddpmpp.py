"""DDPM++ on handwritten digits, trained by flow matching (Liu et al. 2022, arXiv:2209.03003).

docs/parameterizations.md compares it with the VP SDE and EDM."""

from configs.vp import digits_ddpmpp_continuous


def get_config():
    config = digits_ddpmpp_continuous.get_config()
    config.training.sde = "rectifiedflow"
    config.sampling.method = "solver"
    config.eval.bpd_t_min = 1e-3  # The smallest time of training.
    return config
