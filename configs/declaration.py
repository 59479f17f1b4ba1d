"""How a config field is declared, and the domains that many fields have."""

from __future__ import annotations

from typing import Any, NamedTuple

from configs.domains import Domain, FilePath, Flag, Integer, Name, Real, Word

ABSENT = object()
"""The default of a field that a config need not have."""

FLAG, PATH, WORD, NAME, EXACT_NAME = Flag(), FilePath(), Word(), Name(), Name(exact=True)
COUNT = Integer(1, 10**9)
BATCH = Integer(1, 10**6)
SIDE = Integer(1, 4096)  # pixels
SMALLEST, LARGEST = 1e-30, 1e30  # float32, the type of all computations, holds their reciprocals.
FINITE = Real(-LARGEST, LARGEST)
POSITIVE = Real(SMALLEST, LARGEST)
NOT_NEGATIVE = Real(0, LARGEST)
TOLERANCE = Real(1e-8, 1e3)  # float32 rounds at 1e-7; a solver would reach its largest count.
NOISE_SCALE = Real(1e-10, 1e10)  # Its square is computed as well.
SHARE = Real(0, 1)
PART = Real(0, 1, open_low=True, open_high=True)
WIDTH = Real(0, 0.3, open_low=True)  # of power-function averages, none of which has 0.3003 or more


class Field(NamedTuple):
    """One config field.

    Attributes:
      default: the value that a config has unless it states another one, or ABSENT.
      domain: the values that are allowed; `domains.is_data` states which a file may set.
      affects: the groups of results that change with the field.
      meaning: what the field is.
    """

    default: Any
    domain: Domain
    affects: tuple[str, ...]
    meaning: str
