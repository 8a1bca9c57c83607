"""Images of the local cluster: a table from repository to the command that stands for it.

No image is ever pulled. The project's own four images run this very installation; a YAML file in the state directory
(or ``--image``) adds others::

    images:
      - repository: example.org/tools/echo     # without tag; `*/echo` matches any registry
        entrypoint: [python3, -m, echo_server] # as ENTRYPOINT of an image
        args: [--port, "8000"]                 # as CMD: used where the pod names no arguments
        env: {GREETING: hello}
"""

from __future__ import annotations

import shlex
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import llmos_operator
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Sequence

_OURS = ("operator", "agent", "gateway", "runtime")


class Image(BaseModel):
    """What an image of ``repository`` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    repository: str = Field(min_length=1)
    entrypoint: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: dict[str, str] = {}

    def command(self, command: Sequence[str], args: Sequence[str]) -> list[str]:
        """Return the command line for a container's ``command`` and ``args``, by the rules of Kubernetes."""
        if command:
            return [*command, *args]
        return [*self.entrypoint, *(args or self.args)]


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    images: list[Image] = []


def builtin_images() -> tuple[Image, ...]:
    """Return the project's images and an empty one (`*/host`) for pods that bring their own command."""
    package_parent = str(Path(llmos_operator.__file__).resolve().parents[1])
    ours = [
        Image(
            repository=f"*/llmos-{name}",
            entrypoint=(sys.executable, "-m", "llmos_operator"),
            env={"PYTHONPATH": package_parent},
        )
        for name in _OURS
    ]
    return (*ours, Image(repository="*/host"), Image(repository="host"))


def parse_option(text: str) -> Image:
    """Read ``REPO=command…`` as given to ``--image``; raise :class:`Permanent` saying what is wrong."""
    repository, separator, command = text.partition("=")
    if not separator or not repository or not command.strip():
        msg = f"--image {text!r}: expected REPOSITORY=COMMAND, for example example.org/echo='python3 -m http.server'"
        raise Permanent(msg, reason="InvalidImage")
    return Image(repository=repository, entrypoint=tuple(shlex.split(command)))


def write_images(path: Path, images: Sequence[Image]) -> None:
    """Write the additions file, replacing it at once."""
    document = {"images": [image.model_dump(mode="json", exclude_defaults=True) for image in images]}
    temporary = path.with_suffix(".new")
    temporary.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    temporary.replace(path)


def repository_of(reference: str) -> str:
    """Return an image reference without digest and tag."""
    name = reference.partition("@")[0]
    head, separator, last = name.rpartition("/")
    return f"{head}{separator}{last.partition(':')[0]}"


class ImageTable:
    """Looks images up; the additions file is read again whenever it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._added: tuple[Image, ...] = ()
        self._builtin = builtin_images()

    def find(self, reference: str) -> Image | None:
        """Return what ``reference`` stands for, None if the table does not know it. Additions win.

        Raises :class:`Permanent` when the additions file is broken.
        """
        self._reload()
        name = repository_of(reference)
        return next(
            (image for image in (*self._added, *self._builtin) if fnmatchcase(name, image.repository)), None
        )

    def _reload(self) -> None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._added = None, ()
            return
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp == self._stamp:
            return
        try:
            document = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
            self._added = tuple(_File.model_validate(document).images)
        except (yaml.YAMLError, ValidationError) as error:
            msg = f"image table {self._path}: {error}"
            raise Permanent(msg, reason="InvalidImageTable") from error
        self._stamp = stamp
