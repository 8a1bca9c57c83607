"""The KV cache's books: prefixes, eviction order, budgets."""

import random

from llmos_operator.runtime.kvcache import KvCache, blocks_of


def a_cache(blocks=100, slots=4, slot_tokens=1000, **options):
    return KvCache(blocks=blocks, slots=slots, slot_tokens=slot_tokens, **options)


def run(cache, tokens):
    """Admit a sequence, compute all of it, end it; return its admission."""
    admission = cache.admit(tokens)
    cache.computed(admission.slot, tokens, len(tokens))
    cache.release(admission.slot)
    return admission


def test_a_sequence_takes_whole_blocks_and_gives_back_all_but_its_full_ones():
    cache = a_cache()
    admission = cache.admit(list(range(40)))
    assert cache.used_blocks == 3
    cache.computed(admission.slot, list(range(40)), 40)
    cache.release(admission.slot)
    assert cache.used_blocks == 2  # two full blocks stay as a prefix
    cache.drop_cached()
    assert cache.used_blocks == 0


def test_what_a_sequence_keeps_beside_its_tokens_counts():
    cache = a_cache(blocks=10, beside=60, prefix_caching=False)
    admission = cache.admit([1, 2, 3])
    assert cache.used_blocks == 4
    assert cache.grow(admission.slot, 10)
    assert cache.used_blocks == 5
    assert cache.admit([1, 2, 3]) is not None
    assert cache.admit([1, 2, 3]) is None
    assert not cache.fits_ever(101)
    assert cache.fits_ever(100)
    cache.release(admission.slot)
    assert cache.used_blocks == 4
    cache.check()


def test_a_conversation_that_goes_on_takes_over_its_own_slot():
    cache = a_cache()
    first = run(cache, list(range(32)))
    again = cache.admit([*range(32), 77, 78])
    assert (again.slot, again.reused, again.copy_from) == (first.slot, 32, None)
    cache.check()


def test_a_shared_prefix_is_copied_so_that_the_first_holder_keeps_its_tail():
    cache = a_cache()
    first = run(cache, list(range(64)))
    other = cache.admit([*range(32), *range(500, 520)])
    assert other.reused == 32
    assert other.copy_from == first.slot != other.slot
    assert cache.admit([*range(64), 1]).reused == 64
    cache.check()


def test_a_running_sequence_is_a_source_too():
    cache = a_cache()
    first = cache.admit(list(range(48)))
    cache.computed(first.slot, list(range(48)), 32)
    second = cache.admit(list(range(48)))
    assert (second.copy_from, second.reused) == (first.slot, 32)


def test_the_last_token_is_always_computed():
    cache = a_cache()
    run(cache, list(range(32)))
    assert cache.admit(list(range(32))).reused == 16


def test_a_prefix_must_match_from_the_start():
    cache = a_cache()
    run(cache, list(range(64)))
    assert cache.admit([9, *range(1, 64), 5]).reused == 0


def test_without_prefix_caching_nothing_stays():
    cache = a_cache(prefix_caching=False)
    run(cache, list(range(64)))
    assert cache.used_blocks == 0
    assert cache.admit([*range(64), 1]).reused == 0


def test_the_least_recently_used_prefix_goes_first():
    cache = a_cache(blocks=6)
    old = run(cache, [1] * 32)
    run(cache, [2] * 32)
    assert cache.admit([1] * 32 + [5]).slot == old.slot  # touched, live now
    cache.admit([3] * 16)
    assert cache.used_blocks <= 6
    assert cache.admit([2] * 33) is None  # its prefix was evicted and there is no room for three blocks
    cache.check()


def test_growing_beyond_the_budget_or_the_slot_is_refused():
    cache = a_cache(blocks=4, slot_tokens=48)
    slot = cache.admit([1] * 16).slot
    assert cache.grow(slot, 48)
    assert not cache.grow(slot, 49)
    other = cache.admit([2] * 16).slot
    assert not cache.grow(other, 17)


def test_shrinking_evicts_what_is_cached_and_reports_what_only_preemption_can_give():
    cache = a_cache(blocks=10)
    run(cache, [1] * 64)
    live = cache.admit([2] * 64).slot
    assert cache.resize(5)
    assert cache.used_blocks == 4
    assert not cache.resize(3)
    cache.release(live, keep=False)
    assert cache.resize(3)


def test_released_slots_are_reported_once_with_what_they_may_keep():
    cache = a_cache(slots=1)
    slot = run(cache, [1] * 64).slot
    assert cache.take_released() == ()  # still a prefix
    cache.admit([2] * 20)
    assert cache.take_released() == ((slot, 32),)
    assert cache.take_released() == ()


def test_books_balance_after_ten_thousand_random_requests():
    rng = random.Random(7)
    cache = a_cache(blocks=200, slots=16, slot_tokens=400)
    stems = [[rng.randrange(50) for _ in range(rng.randrange(120))] for _ in range(6)]
    live = {}
    for step in range(10_000):
        if live and rng.random() < 0.5:
            slot = rng.choice(list(live))
            tokens = live[slot]
            if rng.random() < 0.5 and cache.grow(slot, len(tokens) + 1):
                tokens.append(rng.randrange(50))
            cache.computed(slot, tokens, rng.randrange(len(tokens) + 1))
            if rng.random() < 0.6:
                cache.release(slot, keep=rng.random() < 0.8)
                del live[slot]
        else:
            tokens = rng.choice(stems) + [rng.randrange(50) for _ in range(rng.randrange(1, 60))]
            admission = cache.admit(tokens)
            if admission is not None:
                assert admission.slot not in live
                assert admission.reused < len(tokens)
                live[admission.slot] = tokens
        if step % 500 == 0:
            cache.resize(rng.choice([150, 200]))
            cache.take_released()
        cache.check()
        assert cache.used_blocks <= 200
        assert cache.live_blocks == sum(max(1, blocks_of(len(t))) for t in live.values())
    for slot in list(live):
        cache.release(slot)
    cache.drop_cached()
    assert cache.used_blocks == 0
    assert len(cache._free_slots) == 16
    assert not cache._index
    assert cache.hit_tokens > 0
