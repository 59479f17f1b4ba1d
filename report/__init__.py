"""Training logs and the report of an evaluation, which is built from files alone."""

from report.data import note_environment, write

__all__ = ["note_environment", "write"]
