"""The tables of node values against exhaustive search, and what must hold of losses and prices whatever comes."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.scheduler.fragmentation.holdings import Holdings
from llmos_operator.scheduler.fragmentation.losses import Asked, Nodes, losses
from llmos_operator.scheduler.fragmentation.pricer import Pricer
from llmos_operator.scheduler.fragmentation.shapes import FULL, Shape, Stock
from llmos_operator.scheduler.fragmentation.worth import Worth

SHARES = (150, 200, 250, 300, 450, 500, 700)
WIDTH = 4

a_shape = st.one_of(
    st.builds(Shape, st.just(1), st.sampled_from(SHARES), st.integers(0, 16_000), st.sampled_from((0, 1, 2))),
    st.builds(Shape, st.integers(1, 4), st.just(FULL), st.integers(0, 16_000), st.sampled_from((0, 1, 2))),
)
some_prices = st.dictionaries(a_shape, st.floats(0.0, 4.0), min_size=1, max_size=6)
a_device = st.one_of(st.just(FULL), st.integers(0, FULL - 1).map(lambda share: share // 50 * 50))
a_node = st.tuples(
    st.integers(0, 1), st.integers(0, 64_000), st.lists(a_device, min_size=WIDTH, max_size=WIDTH)
)


def arrays(*nodes: tuple[int, int, list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kind, cpu, free = zip(*nodes, strict=True)
    return np.array(kind), np.array(cpu), np.array(free)


def best_fill(prices: dict[Shape, float], kind: int, free: list[int]) -> float:
    """Return the dearest set of shapes that fits on the devices of a node, tried one by one; CPU is not counted."""
    shapes = [(shape, price) for shape, price in prices.items() if shape.takes(kind) and price > 0]

    @cache
    def fill(left: tuple[int, ...]) -> float:
        best = 0.0
        for shape, price in shapes:
            if shape.whole:
                idle = [i for i, share in enumerate(left) if share == FULL][: shape.devices]
                options = [idle] if len(idle) == shape.devices else []
            else:
                options = [[i] for i, share in enumerate(left) if share >= shape.share]
            for option in options:
                after = [share - shape.share if i in option else share for i, share in enumerate(left)]
                best = max(best, price + fill(tuple(sorted(after))))
        return best

    return fill(tuple(sorted(free)))


@given(some_prices, a_node)
def test_without_a_price_of_cpu_a_value_is_the_best_fill(
    prices: dict[Shape, float], node: tuple[int, int, list[int]]
) -> None:
    worth = Worth(prices, 2, WIDTH, np.zeros(1))
    assert abs(worth.value(*arrays(node))[0] - best_fill(prices, node[0], node[2])) < 1e-6


@given(some_prices, a_node, st.data())
def test_a_node_with_more_is_not_worth_less(
    prices: dict[Shape, float], node: tuple[int, int, list[int]], data: st.DataObject
) -> None:
    kind, cpu, free = node
    less = (kind, data.draw(st.integers(0, cpu)), [data.draw(st.integers(0, share)) for share in free])
    low, high = Worth(prices, 2, WIDTH).value(*arrays(less, node))
    assert low <= high + 1e-9


@given(some_prices, a_node, a_shape)
def test_a_loss_is_not_negative_and_is_the_fall_of_the_value(
    prices: dict[Shape, float], node: tuple[int, int, list[int]], shape: Shape
) -> None:
    worth = Worth(prices, 2, WIDTH)
    kind, cpu, free = arrays(node)
    asked = Asked(shape.devices, shape.whole, shape.cpu, np.full(2, shape.share))
    nodes = Nodes(kind, free, worth.bounds(kind, cpu, free), np.ones_like(free, bool))
    loss, column = losses(worth, asked, nodes)
    if not np.isfinite(loss[0]):
        assert sum(share >= shape.share for share in node[2]) < shape.devices
        return
    after = free.copy()
    taken = [int(column[0])] if not shape.whole else np.flatnonzero(free[0] == FULL)[: shape.devices]
    after[0, taken] -= shape.share
    assert loss[0] >= -1e-9
    left = worth.bounds(kind, cpu - shape.cpu, after).min(axis=1)
    assert abs(loss[0] - (worth.value(kind, cpu, free) - left)[0]) < 1e-6


@given(
    st.dictionaries(a_shape, st.integers(1, 50), min_size=1, max_size=5),
    st.lists(a_node, min_size=1, max_size=5),
)
def test_the_same_calls_give_the_same_prices_and_none_is_negative(
    mix: dict[Shape, int], nodes: list[tuple[int, int, list[int]]]
) -> None:
    stock = Stock(*arrays(*nodes))
    kinds = (("a", 1), ("b", 1))
    first, second = (Pricer(draws=2).price(stock, mix, kinds, 0.0) for _ in range(2))
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert first.of == second.of
        assert all(price >= 0 for price in first.of.values())


@given(some_prices, st.lists(a_node, min_size=1, max_size=5), a_node, a_shape)
def test_bounds_and_single_rows_agree_with_the_losses_of_all_rows(
    prices: dict[Shape, float],
    nodes: list[tuple[int, int, list[int]]],
    after: tuple[int, int, list[int]],
    shape: Shape,
) -> None:
    worth = Worth(prices, 2, WIDTH)
    kind, cpu, free = arrays(*nodes * 70)  # many rows that are alike
    held = Holdings(worth, kind.copy(), cpu.copy(), free.copy())
    single = Holdings(worth, kind.copy(), cpu.copy(), free.copy())
    changed = arrays(after)
    held.update(slice(0, 1), changed[1], changed[2])
    single.update_one(0, int(changed[1][0]), changed[2][0].tolist())
    asked = Asked(shape.devices, shape.whole, shape.cpu, np.full(2, shape.share))
    usable = np.ones(free.shape, np.bool_)
    loss, column = held.losses(asked, slice(None), usable)
    least = held.least(asked, slice(None))
    assert np.array_equal(single.least(asked, slice(None)), least)
    assert (least <= loss + 1e-6).all()
    if shape.devices <= 1 or shape.whole:
        for row in range(len(nodes)):
            assert single.loss_one(asked, row, [True] * WIDTH) == (loss[row], column[row])
