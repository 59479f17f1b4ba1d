"""The registry of evaluation stages."""

from __future__ import annotations

from metrics import bits_per_dim_stage, loss_stage, sample_quality_stage, samples_stage

STAGES = (
    loss_stage.STAGE,
    bits_per_dim_stage.STAGE,
    samples_stage.STAGE,
    sample_quality_stage.STAGE,
)
"""All stages in the order in which they run and appear in the tables and the report.

A new stage also needs its default, config.eval.enable_NAME, in configs/evaluation_fields.py.
"""
