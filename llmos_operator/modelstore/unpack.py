"""Taking a model's files out of a layer's tar archive: regular files with harmless names, and nothing else."""

from __future__ import annotations

import tarfile
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.modelstore.remote import MAX_FILES, safe_path, wanted

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.modelstore.remote import Place

_CHUNK = 1 << 20
_MOST_GROWTH = 10  # weights hardly shrink and programs to a third: an archive that grows more is a bomb
_FREE_BYTES = 64 << 20  # growth of what is small does not matter


def unpack(archive: Path, inside: str, folder: Path, place: Place, limit: int = 0) -> list[tuple[str, int]]:
    """Write the wanted members of ``archive`` that lie in its folder ``inside`` to ``folder``; return path and size of each.

    Links, devices and members of other kinds are passed over. Raises Permanent (Corrupted, SourceNotAllowed, TooLarge).
    """
    found: list[tuple[str, int]] = []
    room = _FREE_BYTES + _MOST_GROWTH * archive.stat().st_size
    room = min(room, limit) if limit else room
    try:
        with tarfile.open(archive, "r|*") as tar:  # a stream: members are read once, in order
            for member in tar:
                room -= member.size
                if room < 0 or len(found) >= MAX_FILES:
                    raise place.refuse(
                        "a layer unpacks to more than is believable for a model", Reason.TOO_LARGE
                    )
                path = _path(member.name, inside, place) if member.isreg() else None
                if path is None:
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                reader = tar.extractfile(member)
                with target.open("wb") as out:
                    while reader is not None and (chunk := reader.read(_CHUNK)):
                        out.write(chunk)
                found.append((path, member.size))
    except (tarfile.TarError, EOFError) as error:
        raise place.refuse(f"a layer is no tar archive: {error}", Reason.CORRUPTED) from error
    return found


def _path(name: str, inside: str, place: Place) -> str | None:
    """Return where a member goes in the model's folder, None if it is not wanted."""
    path = name.removeprefix("./").removeprefix("/")
    if not path.startswith(inside) or not wanted(path.removeprefix(inside)):
        return None
    return safe_path(path.removeprefix(inside), place)
