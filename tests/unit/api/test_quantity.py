"""Quantities and durations are exact integers, and an error names the text it could not read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api import quantity as q
from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1", 1),
        (17, 17),
        ("1Ki", 1024),
        ("1.5Gi", 1_610_612_736),
        ("10Gi", 10 << 30),
        ("7Ei", 7 << 60),
        ("1k", 1000),
        ("1G", 10**9),
        ("1E", 10**18),
        ("1e3", 1000),
        ("1E3", 1000),
        ("12E-1", 2),  # 1.2 rounds up
        ("100m", 1),  # a tenth of a byte is one byte
        ("1500m", 2),
        (".5Ki", 512),
        ("1.", 1),
        ("+2Mi", 2 << 20),
        ("-0", 0),
        ("1n", 1),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_bytes_are_read_exactly_and_rounded_up(text, count):
    assert q.parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Gi",
        "1GB",
        "1 Gi",
        "1gi",
        "ten",
        "1e",
        "--1",
        "1.2.3",
        ".",
        "0x10",
        "1Kii",
        "NaN",
        "inf",
        "\u0661",
        None,
        1.5,
        True,
    ],
)
def test_text_that_is_no_quantity_is_named_in_the_error(text):
    with pytest.raises(q.QuantityError) as error:
        q.parse_bytes(text)
    assert repr(text) in str(error.value)
    assert "like 10Gi" in str(error.value)
    assert isinstance(error.value, Permanent)
    assert error.value.reason == Reason.INVALID_SPEC


@pytest.mark.parametrize("text", ["-1", "-5Gi", "-1m"])
def test_negative_quantities_are_refused(text):
    with pytest.raises(q.QuantityError, match="negative"):
        q.parse_bytes(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "8Ei", "1e30", "1e999999999", "9" * 64])
def test_what_does_not_fit_int64_is_refused_without_building_it(text):
    with pytest.raises(q.QuantityError, match="out of range"):
        q.parse_bytes(text)


def test_a_huge_negative_exponent_is_refused_not_computed():
    with pytest.raises(q.QuantityError, match="out of range"):
        q.parse_bytes("1e-999999999")


def test_hostile_text_is_cut_in_the_message():
    with pytest.raises(q.QuantityError) as error:
        q.parse_bytes("9" * 100_000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("text", "milli"), [("500m", 500), ("2", 2000), ("1.5", 1500), ("1u", 1), ("1Ki", 1_024_000)]
)
def test_cpu_is_counted_in_thousandths(text, milli):
    assert q.parse_milli(text) == milli


def test_counts_are_whole():
    assert q.parse_count("8") == 8
    assert q.parse_count("1k") == 1000
    assert q.parse_count("3000m") == 3
    with pytest.raises(q.QuantityError, match=r"'1\.5' is not a whole number.*like 2"):
        q.parse_count("1.5")


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_formatted_quantities_read_back_the_same(count):
    assert q.parse_bytes(q.format_bytes(count)) == count
    assert q.parse_milli(q.format_milli(count)) == count
    assert q.parse_milliseconds(q.format_milliseconds(count)) == count


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(["", "k", "M", "Ki", "Mi", "Gi", "m"]))
def test_fractions_agree_with_exact_arithmetic(whole, fraction, suffix):
    scale = {
        "": (1, 1),
        "k": (1000, 1),
        "M": (10**6, 1),
        "Ki": (2**10, 1),
        "Mi": (2**20, 1),
        "Gi": (2**30, 1),
        "m": (1, 1000),
    }
    up, down = scale[suffix]
    numerator, denominator = (whole * 1000 + fraction) * up, 1000 * down
    assert q.parse_bytes(f"{whole}.{fraction:03d}{suffix}") == -(-numerator // denominator)


def test_bytes_are_formatted_with_the_largest_exact_suffix():
    assert [q.format_bytes(n) for n in (0, 1, 1024, 1 << 30, 3 << 29, 1500)] == [
        "0",
        "1",
        "1Ki",
        "1Gi",
        "1536Mi",
        "1500",
    ]
    assert [q.human_bytes(n) for n in (12, 1 << 30, 1_288_490_189, -(3 << 19))] == [
        "12 B",
        "1.0 GiB",
        "1.2 GiB",
        "-1.5 MiB",
    ]


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("80ms", 80),
        ("5m", 300_000),
        ("1h30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("2s500ms", 2500),
        ("0.0001s", 1),
    ],
)
def test_durations_are_milliseconds(text, milliseconds):
    assert q.parse_milliseconds(text) == milliseconds


def test_seconds_are_rounded_up():
    assert q.parse_seconds("80ms") == 1
    assert q.parse_seconds("1h") == 3600
    assert q.format_seconds(5400) == "1h30m"


@pytest.mark.parametrize("text", ["", "5", "5 m", "-5m", "m", "5d", "1h-3m", "1e3s", "5M", "9" * 65 + "s"])
def test_text_that_is_no_duration_is_refused(text):
    with pytest.raises(q.QuantityError, match="like 5m, 1h30m or 80ms"):
        q.parse_milliseconds(text)


def test_percentages_are_thousandths_of_a_percent():
    assert [q.parse_percent_milli(t) for t in ("5%", "0.25%", "100%", "0%")] == [5000, 250, 100_000, 0]
    assert [q.format_percent_milli(n) for n in (5000, 250, 0, 100_000)] == ["5%", "0.25%", "0%", "100%"]
    for bad in ("5", "101%", "-1%", "0.1234%", "%"):
        with pytest.raises(q.QuantityError, match="0% to 100%"):
            q.parse_percent_milli(bad)


def test_compute_capabilities_compare_as_numbers_not_as_text():
    assert q.parse_compute_capability("10.0") > q.parse_compute_capability("8.9")
    with pytest.raises(q.QuantityError, match=r"'8' is not a compute capability: write major\.minor"):
        q.parse_compute_capability("8")
