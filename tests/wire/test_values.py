"""The private value format."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from txproxy.wire import values

text = st.text(st.characters(exclude_categories=["Cs"]))
integers = st.integers(-(1 << 63), (1 << 63) - 1)
anything = st.one_of(integers, st.floats(allow_nan=False), text, st.binary())


@given(anything)
def test_a_value_comes_back_as_it_was(value: values.Value) -> None:
    back = values.decode(values.encode(value))
    assert type(back) is type(value)
    assert back == value


def test_minus_zero_keeps_its_sign() -> None:
    back = values.decode(values.encode(-0.0))
    assert isinstance(back, float)
    assert math.copysign(1, back) == -1


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63) - 1])
def test_an_integer_beyond_64_bits_is_refused(value: int) -> None:
    with pytest.raises(OverflowError):
        values.encode(value)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        values.encode("\ud800")


@pytest.mark.parametrize("data", [b"", b"i", b"i1234567", b"f123456789", b"x12345678"])
def test_what_is_no_value_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a value"):
        values.decode(data)
