"""Samples, log-densities and posteriors of any score; `score_sde` exports the public names."""
