"""Training logs and the report of an evaluation, which is built from files alone."""

from report.report_data import note_environment, write

__all__ = ["note_environment", "write"]
