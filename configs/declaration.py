"""How a config field is declared, and the domains that many fields have."""

from __future__ import annotations

from typing import Any, NamedTuple

from options import Domain, Integer, Real

ABSENT = object()
"""The default of a field that a config need not have."""

BATCH = Integer(1, 10**6)
SIDE = Integer(1, 4096)  # pixels
PART = Real(0, 1, open_low=True, open_high=True)
WIDTH = Real(0, 0.3, open_low=True)  # of power-function averages, none of which has 0.3003 or more


class Field(NamedTuple):
    """One config field.

    Attributes:
      default: the value that a config has unless it states another one, or ABSENT.
      domain: the values that are allowed; `options.is_data` states which a file may set.
      affects: the groups of results that change with the field.
      meaning: what the field is.
    """

    default: Any
    domain: Domain
    affects: tuple[str, ...]
    meaning: str
