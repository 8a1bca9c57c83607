"""How GPUs can be cut, and which layout serves waiting work best."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api.mig import MigProfile, parse_profile
from llmos_operator.scheduler.geometry.layouts import Layout, Need, best, judge, layouts_of
from llmos_operator.scheduler.geometry.products import PRODUCTS, Product, fits, most, product_of, usable_bytes

GIB = 1 << 30
H100 = product_of("NVIDIA H100 80GB HBM3")
assert H100 is not None


def counts(**profiles: int) -> Counter[MigProfile]:
    return Counter(
        {parse_profile(name.replace("_", ".").removeprefix("p")): count for name, count in profiles.items()}
    )


@pytest.mark.parametrize(
    ("name", "smallest"),
    [
        ("NVIDIA A100-SXM4-40GB", "1g.5gb"),
        ("NVIDIA A100-PCIE-40GB MIG 1g.5gb", "1g.5gb"),
        ("NVIDIA A100 80GB PCIe", "1g.10gb"),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb", "1g.10gb"),
        ("NVIDIA H100 PCIe", "1g.10gb"),
        ("NVIDIA H200", "1g.18gb"),
        ("NVIDIA H100 NVL", ""),
        ("NVIDIA GH200 480GB", ""),
        ("Tesla T4", ""),
    ],
)
def test_a_product_is_known_by_its_name(name: str, smallest: str) -> None:
    product = product_of(name)
    assert (str(product.shapes[0].profile) if product else "") == smallest


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda one: " ".join(one.words))
def test_as_many_of_one_profile_fit_as_nvidia_says(product: Product) -> None:
    assert [most(product, one.profile) for one in product.shapes] == [7, 4, 3, 2, 1, 1]
    assert len(layouts_of(product)) == 7, "mig-manager's own: one of each profile, and the balanced one"


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        (counts(p3g_40gb=2), True),
        (counts(p4g_40gb=1, p3g_40gb=1), True),
        (counts(p4g_40gb=2), False),
        (counts(p3g_40gb=1, p2g_20gb=1, p1g_10gb=1), True),
        (counts(p3g_40gb=1, p1g_10gb=4), True),
        (counts(p3g_40gb=1, p1g_10gb=5), False),
        (counts(p3g_40gb=1, p2g_20gb=2), True),
        (counts(p3g_40gb=2, p1g_10gb=1), False),
        (counts(p3g_40gb=1, p1g_20gb=2), True),
        (counts(p2g_20gb=3, p1g_10gb=1), True),
        (counts(p2g_20gb=3, p1g_20gb=1), True),
        (counts(p7g_80gb=1, p1g_10gb=1), False),
        (counts(p1g_5gb=1), False),
        (counts(), True),
    ],
)
def test_instances_fit_where_their_places_do_not_overlap(wanted: Counter[MigProfile], there: bool) -> None:
    assert H100 is not None
    assert fits(H100, wanted) is there


@given(st.lists(st.integers(0, 5), max_size=8), st.sampled_from(PRODUCTS))
def test_fitting_is_what_trying_all_places_finds(numbers: list[int], product: Product) -> None:
    shapes = [product.shapes[number] for number in numbers]
    enough = sum(one.profile.slices for one in shapes) <= 7
    places = (
        [[set(range(start, start + one.memory)) for start in one.starts] for one in shapes] if enough else []
    )
    tried = (list(chosen) for chosen in itertools.product(*places))
    found = enough and any(len(set().union(*one)) == sum(map(len, one)) for one in tried)
    assert fits(product, Counter(one.profile for one in shapes)) is found


def test_the_most_are_served_then_the_least_is_spent_then_the_largest_is_left() -> None:
    assert H100 is not None
    present: dict[MigProfile, int] = {}

    def chosen(*needs: Need, gpus: int = 1, named: tuple[Layout, ...] = ()) -> str:
        found = best(H100, layouts_of(H100, named), gpus, present, needs)
        return found.layout.name if found is not None else ""

    assert chosen(Need(15 * GIB)) == "all-1g.20gb", "an eighth less of compute than 2g.20gb"
    assert chosen(Need(5 * GIB)) == "all-balanced", "the smallest is spent, and 3g.40gb is left"
    assert chosen(*[Need(15 * GIB)] * 4) == "all-1g.20gb"
    assert chosen(*[Need(5 * GIB)] * 7) == "all-1g.10gb"
    assert chosen(Need(30 * GIB), Need(30 * GIB)) == "all-3g.40gb"
    assert chosen(Need(5 * GIB, parse_profile("4g.20gb"))) == "all-4g.40gb"
    assert chosen(Need(200 * GIB)) == ""
    two = Layout("two", ((parse_profile("3g.40gb"), 1), (parse_profile("1g.20gb"), 2)))
    assert chosen(Need(30 * GIB), Need(15 * GIB), Need(15 * GIB), named=(two,)) == "two"


def test_what_the_present_instances_serve_is_no_reason_to_cut() -> None:
    assert H100 is not None
    line, present = [Need(5 * GIB), Need(5 * GIB)], {parse_profile("1g.10gb"): 2}
    assert best(H100, layouts_of(H100), 1, present, line) is None
    found = best(H100, layouts_of(H100), 1, present, [*line, Need(5 * GIB)])
    assert found is not None
    assert found.served == (0, 1, 2)


def test_a_named_layout_replaces_one_of_that_name_and_must_fit() -> None:
    assert H100 is not None
    mine = Layout("all-balanced", ((parse_profile("1g.10gb"), 7),))
    never = Layout("never", ((parse_profile("4g.40gb"), 2),))
    found = {one.name: one for one in layouts_of(H100, [mine, never])}
    assert found["all-balanced"] == mine
    assert "never" not in found


needs = st.builds(Need, st.integers(1, 90 * GIB), st.sampled_from([None, parse_profile("2g.10gb")]))


@given(st.lists(needs, max_size=12), st.integers(1, 4))
def test_no_layout_serves_more_than_the_best_and_none_is_served_twice(line: list[Need], gpus: int) -> None:
    assert H100 is not None
    layouts = layouts_of(H100)
    found = best(H100, layouts, gpus, {}, line)
    verdicts = [judge(H100, one, gpus, line) for one in layouts]
    assert len(found.served if found is not None else ()) == max(len(one.served) for one in verdicts)
    for one in verdicts:
        assert len(set(one.served)) == len(one.served) <= gpus * sum(count for _, count in one.layout.counts)
        assert one.used <= gpus * 1069, (
            "parts are of slices or of memory: those of all-balanced add up to most"
        )


def test_work_counts_on_no_more_memory_than_instances_have() -> None:
    """As nvidia-smi mig -lgip tells, in GiB: NVIDIA MIG User Guide, outputs for A100 and H200."""
    told = {
        "1g.5gb": 4.75,
        "2g.10gb": 9.75,
        "3g.20gb": 19.5,
        "7g.40gb": 39.25,
        "1g.18gb": 16.0,
        "1g.35gb": 32.5,
    }
    for name, gib in told.items():
        assert 0.85 * gib < usable_bytes(parse_profile(name)) / GIB <= gib
