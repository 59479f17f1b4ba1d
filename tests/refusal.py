"""Assert that something is refused: by an `InputError` of one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from errors import InputError


def refused(match: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """Return the message of the InputError of a call: one line, in which `match` is found."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(match, message), message
    return message
