from __future__ import annotations

import gc

from llmos_operator.observability.footprint import settle


class Ring:
    """Something only the collector of cycles can free."""

    freed = 0

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        type(self).freed += 1


def test_what_stands_is_left_to_itself_and_what_comes_later_is_collected() -> None:
    try:
        Ring()
        settle()
        assert Ring.freed == 1  # it was no part of what stands
        assert gc.get_freeze_count() > 0
        Ring()
        gc.collect()
        assert Ring.freed == 2
    finally:
        gc.unfreeze()
