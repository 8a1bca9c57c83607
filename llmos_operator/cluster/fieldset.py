"""Server-side apply for the in-memory port: what one manager applied last time and now leaves out disappears.

Lists are atomic here. The real server merges list-maps by key; our writers always apply the lists they own as a
whole, where the two agree.
"""

from __future__ import annotations

import copy
from typing import Any


def merge_applied(live: dict[str, Any], former: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return ``live`` with ``wanted`` put in and removed what only ``former`` (the manager's last apply) had set."""
    result = copy.deepcopy(live)
    _remove(result, former, wanted)
    _put(result, wanted)
    return result


def _remove(live: dict[str, Any], former: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in former.items():
        if key not in live:
            continue
        if key not in wanted:
            if isinstance(value, dict) and isinstance(live[key], dict):
                _remove(live[key], value, {})
                if not live[key]:
                    del live[key]
            else:
                del live[key]
        elif isinstance(value, dict) and isinstance(live[key], dict) and isinstance(wanted[key], dict):
            _remove(live[key], value, wanted[key])


def _put(live: dict[str, Any], wanted: dict[str, Any]) -> None:
    for key, value in wanted.items():
        if isinstance(value, dict) and isinstance(live.get(key), dict):
            _put(live[key], value)
        else:
            live[key] = copy.deepcopy(value)
