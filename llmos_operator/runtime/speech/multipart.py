"""Forms with files (`multipart/form-data`, RFC 7578), read from a body that is in memory already.

Bounded in parts, in headers and in the length of a field's value; what a part holds is never interpreted here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

MAX_PARTS = 64
MAX_HEADER_BYTES = 4096
MAX_FIELD_BYTES = 64 << 10
_BOUNDARY = re.compile(
    r"""^multipart/form-data\b.*;\s*boundary=(?:"([^"]{1,200})"|([^\s;"]{1,200}))""", re.IGNORECASE
)
_DISPOSITION = re.compile(rb"^content-disposition:\s*form-data\b(.*)$", re.IGNORECASE | re.MULTILINE)
_NAME = re.compile(rb';\s*name="((?:[^"\\\r\n]|\\.)*)"', re.IGNORECASE)
_FILE_NAME = re.compile(rb';\s*filename="((?:[^"\\\r\n]|\\.)*)"', re.IGNORECASE)


class BadForm(ValueError):  # noqa: N818 - reads as what it is
    """A body is no such form; the message says why and ``param`` which field is wrong, where one is."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a form."""

    name: str
    data: bytes = field(repr=False)


@dataclass(slots=True)
class Form:
    """Fields, each with all its values in order, and files by field."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, Upload] = field(default_factory=dict)


def read_form(content_type: str, body: bytes) -> Form:
    """Return the form of a request's body. Raises BadForm."""
    match = _BOUNDARY.match(content_type)
    if match is None:
        raise BadForm(
            "the request must be multipart/form-data with a boundary, as `curl --form` and OpenAI's clients send it"
        )
    mark = b"--" + (match.group(1) or match.group(2)).encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(b"\r\n" + mark, MAX_PARTS + 1)
    if len(pieces) < 2 or not _ends(pieces[-1]):  # noqa: PLR2004 - what is before the first mark, and after the last
        if len(pieces) > MAX_PARTS + 1:
            raise BadForm(f"the form has more than {MAX_PARTS} parts")
        raise BadForm("the form is cut off: its last boundary is missing")
    form = Form()
    for piece in pieces[1:-1]:
        _take(piece, form)
    return form


def _ends(piece: bytes) -> bool:
    return piece.startswith(b"--")


def _take(piece: bytes, form: Form) -> None:
    head, gap, data = piece.partition(b"\r\n\r\n")
    if not gap or not head.startswith(b"\r\n") or len(head) > MAX_HEADER_BYTES:
        raise BadForm(f"a part of the form has no headers, or more than {MAX_HEADER_BYTES} bytes of them")
    disposition = _DISPOSITION.search(head.replace(b"\r\n", b"\n"))
    name = _NAME.search(disposition.group(1)) if disposition is not None else None
    if disposition is None or name is None:
        raise BadForm("a part of the form has no name")
    field_name = _text(name.group(1))
    file_name = _FILE_NAME.search(disposition.group(1))
    if file_name is not None:
        if field_name in form.files:
            raise BadForm(f"'{field_name[:80]}' is there twice", field_name[:80])
        form.files[field_name] = Upload(_text(file_name.group(1)), data)
        return
    if len(data) > MAX_FIELD_BYTES:
        raise BadForm(
            f"'{field_name[:80]}' has {len(data)} bytes; a field may have {MAX_FIELD_BYTES}", field_name[:80]
        )
    try:
        form.fields.setdefault(field_name, []).append(data.decode())
    except UnicodeDecodeError:
        raise BadForm(f"'{field_name[:80]}' is no UTF-8", field_name[:80]) from None


def _text(raw: bytes) -> str:
    return re.sub(rb"\\(.)", rb"\1", raw).decode("utf-8", "replace")
