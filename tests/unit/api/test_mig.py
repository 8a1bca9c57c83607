"""Names of MIG profiles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api.mig import MigProfile, parse_profile, profile_in


@pytest.mark.parametrize(
    ("text", "profile", "resource"),
    [
        ("1g.10gb", MigProfile(1, 1, 10), "nvidia.com/mig-1g.10gb"),
        ("7g.141gb", MigProfile(7, 7, 141), "nvidia.com/mig-7g.141gb"),
        ("1c.3g.40gb", MigProfile(1, 3, 40), "nvidia.com/mig-1c.3g.40gb"),
        ("1g.10gb+me", MigProfile(1, 1, 10, ("+me",)), "nvidia.com/mig-1g.10gb.me"),
        ("1g.24gb+me.all", MigProfile(1, 1, 24, ("+me.all",)), "nvidia.com/mig-1g.24gb.me.all"),
        ("2g.48gb+gfx-me", MigProfile(2, 2, 48, ("+gfx", "-me")), "nvidia.com/mig-2g.48gb.gfx-me"),
    ],
)
def test_a_name_is_read_and_written(text: str, profile: MigProfile, resource: str) -> None:
    assert parse_profile(text) == profile
    assert str(profile) == text
    assert profile.resource == resource


@pytest.mark.parametrize(
    "text", ["", "10gb", "1g", "8g.80gb", "0g.5gb", "1g.0gb", "1g.10GB", "1g.10gb+", " 1g.10gb"]
)
def test_what_is_no_profile_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"write one like 1g\.10gb"):
        parse_profile(text)


def test_an_instance_holds_what_is_no_larger_in_any_respect() -> None:
    have = parse_profile("2g.20gb")
    assert [have.holds(parse_profile(text)) for text in ("1g.10gb", "1g.20gb", "2g.20gb")] == [True] * 3
    assert [have.holds(parse_profile(text)) for text in ("3g.20gb", "1g.24gb", "1g.10gb+me")] == [False] * 3
    assert parse_profile("1g.10gb+me").holds(parse_profile("1g.10gb"))
    assert not parse_profile("1c.3g.40gb").holds(parse_profile("3g.40gb")), "a part of its slices is not all"


@pytest.mark.parametrize(
    ("product", "profile"),
    [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "1g.10gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", "1c.3g.20gb"),
        ("NVIDIA H100 80GB HBM3", "None"),
        ("NVIDIA H100 MIG of another kind", "None"),
        ("MIG 1g.10gb", "None"),
        ("", "None"),
    ],
)
def test_the_driver_ends_the_name_of_an_instance_with_its_profile(product: str, profile: str) -> None:
    assert str(profile_in(product)) == profile


@given(st.text(max_size=40))
def test_any_text_is_read_back_or_refused(text: str) -> None:
    try:
        profile = parse_profile(text)
    except ValueError:
        return
    assert parse_profile(str(profile)) == profile
