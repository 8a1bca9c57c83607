"""Parts of a model and the beat between ranks, without processes."""

import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from llmos_operator.clock import FakeClock
from llmos_operator.runtime.backends.quantized import Int4Linear, Int8Linear
from llmos_operator.runtime.backends.sharding import COLUMNS, ROWS, Cut, Vocabulary, _narrow, part_of
from llmos_operator.runtime.formats.grids import pack_int4, quantize_int4, quantize_int8
from llmos_operator.runtime.ipc.orders import RankLost
from llmos_operator.runtime.ranks.meeting import accept_ranks, join
from llmos_operator.runtime.ranks.pulse import ENDED, SILENCE_SECONDS, Pulse

OUT, IN = 256, 128


def int8(weight):
    layer = Int8Linear(IN, OUT)
    layer.weight, layer.scale = quantize_int8(weight)
    return layer


def int4(weight):
    layer = Int4Linear(IN, OUT)
    values, grid = quantize_int4(weight)
    layer.weight, layer.grid = pack_int4(values), grid.transpose(0, 1).contiguous()
    return layer


def plain(weight):
    layer = nn.Linear(IN, OUT, bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


def parts(whole, make, cuts):
    """Return the layer's parts, each cut as a rank cuts it."""
    found = []
    for cut in cuts:
        holder = nn.Module()
        holder.layer = make(torch.zeros(OUT, IN))
        _narrow(holder.layer, cut)
        for name, tensor in whole.state_dict().items():
            own = part_of(holder, {"layer": cut}, f"layer.{name}", tensor)
            assert own.shape == getattr(holder.layer, name).shape
            setattr(holder.layer, name, nn.Parameter(own, requires_grad=False) if make is plain else own)
        found.append(holder.layer)
    return found


@pytest.mark.parametrize("make", [plain, int8, int4])
@pytest.mark.parametrize("rows", [3, 40], ids=["few", "many"])
def test_parts_compute_what_the_whole_layer_computes(make, rows):
    torch.manual_seed(1)
    whole = make(torch.randn(OUT, IN))
    dtype = torch.float32 if make is plain else torch.bfloat16
    x = torch.randn(rows, IN).to(dtype)
    with torch.inference_mode():
        expected = whole(x)
        # Two projections that lie one after the other, of each the half of a rank.
        fused = [Cut(ROWS, ((0, 64), (128, 192))), Cut(ROWS, ((64, 128), (192, 256)))]
        first, second = (layer(x) for layer in parts(whole, make, fused))
        joined = torch.cat((first[:, :64], second[:, :64], first[:, 64:], second[:, 64:]), -1)
        torch.testing.assert_close(joined, expected)
        halves = [Cut(COLUMNS, ((0, 64),)), Cut(COLUMNS, ((64, 128),))]
        summed = sum(
            layer(part).float()
            for layer, part in zip(parts(whole, make, halves), x.split(64, -1), strict=True)
        )
    torch.testing.assert_close(summed, expected.float(), rtol=0.02, atol=0.3 if make is not plain else 1e-4)


def test_a_bias_of_summed_results_is_added_once():
    layer, bias = nn.Linear(IN, OUT), torch.ones(OUT)
    holder = nn.Module()
    holder.layer = layer
    cuts = [Cut(COLUMNS, ((rank * 64, rank * 64 + 64),), first=rank == 0) for rank in range(2)]
    held = [part_of(holder, {"layer": cut}, "layer.bias", bias) for cut in cuts]
    assert torch.equal(held[0] + held[1], bias)


def test_ranges_of_the_vocabulary_cover_it_once():
    ranges = [Vocabulary(SimpleNamespace(rank=rank, count=4), 331) for rank in range(4)]
    assert [(one.begin, one.end) for one in ranges] == [(0, 83), (83, 166), (166, 249), (249, 331)]
    assert [one.overlap(80, 90) for one in ranges] == [(80, 83), (0, 7), (0, 0), (0, 0)]


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def test_a_rank_that_is_silent_is_noticed_and_one_that_beats_is_not(ends):
    clock = FakeClock()
    near, far = (Pulse(end, clock) for end in ends)
    for _ in range(30):
        clock.advance(1.0)
        far.beat(7)
        assert near.trouble() == ""
    assert near.last.measured_bytes == 7
    silent = 0
    while not near.trouble():
        clock.advance(1.0)
        silent += 1
    assert "silent" in near.trouble()
    assert silent <= SILENCE_SECONDS


def test_an_observer_that_stood_still_itself_does_not_accuse_the_others(ends):
    clock = FakeClock()
    near = Pulse(ends[0], clock)
    clock.advance(3600)  # a suspended laptop
    assert near.trouble() == ""


def test_an_end_is_seen_at_once(ends):
    near = Pulse(ends[0], FakeClock())
    ends[1].close()
    assert near.trouble() == ENDED


def test_ranks_of_other_pods_are_let_in_by_what_they_know():
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = free.getsockname()
    with ThreadPoolExecutor() as pool:
        leader = pool.submit(accept_ranks, at, range(1, 3), "secret", FakeClock(), lambda: True)
        stranger = pool.submit(join, at, 1, "guessed", lambda: True)
        uninvited = pool.submit(join, at, 7, "secret", lambda: True)
        for turned_away in (stranger, uninvited):
            for connection in turned_away.result(60):
                assert connection.recv(1) == b""
                connection.close()
        second, first = (pool.submit(join, at, rank, "secret", lambda: True) for rank in (2, 1))
        members = leader.result(60)
        assert [member.rank for member in members] == [1, 2]
        for member, joined in zip(members, (first, second), strict=True):
            orders, pulse = joined.result(60)
            member.orders.sendall(b"order")
            member.pulse.connection.send(b"beat")
            assert (orders.recv(5), pulse.recv(4)) == (b"order", b"beat")
            for connection in (orders, pulse, member.orders, member.pulse.connection):
                connection.close()


def test_nobody_is_waited_for_when_the_front_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as free:
        at = free.getsockname()
    with pytest.raises(RankLost, match="front is gone"):
        accept_ranks(at, range(1, 2), "secret", FakeClock(), lambda: False)
    with pytest.raises(RankLost, match="front is gone"):
        join(at, 1, "secret", lambda: False)
