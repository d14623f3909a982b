"""How a mistake must be answered."""

import re

import pytest


def assert_refused(call, message, error=ValueError):
    """``call`` raises one line that holds ``message``."""
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert "\n" not in str(caught.value)
