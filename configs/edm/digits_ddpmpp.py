"""DDPM++ on handwritten digits, as EDM trains it (Karras et al. 2022, arXiv:2206.00364).

docs/parameterizations.md compares it with the VP SDE and rectified flow."""

from configs.vp import digits_ddpmpp_continuous


def get_config():
    config = digits_ddpmpp_continuous.get_config()
    config.training.sde = "edmsde"
    config.training.time_distribution = "log_normal"
    config.model.sigma_data = 0.75  # That of the digits; EDM's 0.5 is that of photographs.
    config.sampling.method = "solver"
    config.eval.bpd_t_min = 0.002  # The smallest noise level of training.
    return config
