"""Vocabulary for wire types: what a field promises to the API server beyond its Python type.

A type of :mod:`llmos_operator.api.v1alpha1` is a pydantic model whose fields carry these markers in ``Annotated``;
:mod:`llmos_operator.api.crd` turns them into the structural schema. pydantic itself ignores them, so reading an object
costs nothing extra.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

INT32_MAX = (1 << 31) - 1
# The largest whole number that JSON carries exactly. The API server reads bounds of a schema as floats: 2^63 - 1 would
# become 2^63, which is no int64, and every write of the field would be refused.
INT64_MAX = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule (``x-kubernetes-validations``). The message tells a user what is wrong and what to write.

    ``field_path`` points below the place of the rule (``.format``). A rule that names ``oldSelf`` is a transition rule.
    """

    rule: str
    message: str
    field_path: str = ""


@dataclass(frozen=True, slots=True)
class ListMap:
    """A list of named objects: items are told apart and merged by these keys."""

    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListSet:
    """A list without repeats; every writer may own some of its items."""


@dataclass(frozen=True, slots=True)
class ListAtomic:
    """A list that is written as a whole by one writer; its order matters."""


@dataclass(frozen=True, slots=True)
class Format:
    """Format of a string the API server checks, such as ``date-time``."""

    name: str


@dataclass(frozen=True, slots=True)
class IntOrString:
    """A field that takes a number or text, such as a quantity."""


@dataclass(frozen=True, slots=True)
class OrEmpty:
    """An enum that also takes the empty string, which means the field is not set."""


@dataclass(frozen=True, slots=True)
class MaxProperties:
    """Upper bound of the number of keys of a map."""

    count: int


class KubeModel(BaseModel):
    """Base of all wire types: immutable, camelCase on the wire, tolerant of fields of a newer release.

    ``rules`` are CEL rules over the whole object.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="ignore",
        frozen=True,
        defer_build=True,  # a process pays for the kinds it reads
    )
    rules: ClassVar[tuple[Rule, ...]] = ()


class OpenModel(KubeModel):
    """A part of a larger type, such as a PodSpec: fields it does not list are kept as they are, unchecked."""

    model_config = ConfigDict(extra="allow")


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_QUANTITY = "^[0-9]{1,19}([.][0-9]{1,9})?([kMGTPE]|[KMGTPE]i)?$"
DURATION_PATTERN = "^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?([0-9]{1,6}ms)?$"

Quantity = Annotated[
    str,
    BeforeValidator(_as_text),
    IntOrString(),
    StringConstraints(max_length=32),
    Rule(
        f"type(self) == int ? self >= 0 : string(self).matches('{_QUANTITY}')",
        "must be a quantity that is not negative: a number with an optional suffix, like 10Gi, 512Mi or 1073741824",
    ),
]
"""A Kubernetes quantity as text; :mod:`llmos_operator.api.quantity` reads it exactly."""

PositiveQuantity = Annotated[
    Quantity,
    Rule(
        "type(self) == int ? self > 0 : !string(self).matches('^[0.]+[A-Za-z]*$')",
        "must be more than 0: leave the field out to let the operator decide",
    ),
]

Duration = Annotated[
    str,
    StringConstraints(max_length=32),
    Rule(
        f"self != '' && self.matches('{DURATION_PATTERN}')",
        "must be a duration of whole numbers with units h, m, s, ms in this order, like 5m, 1h30m or 80ms",
    ),
]
"""A duration as text, such as ``1h30m``; :func:`llmos_operator.api.quantity.parse_milliseconds` reads it."""

PositiveDuration = Annotated[
    Duration,
    Rule("!self.matches('^[0hms]+$')", "must be longer than 0: leave the field out to turn the feature off"),
]

Percent = Annotated[
    str,
    StringConstraints(max_length=8),
    Rule(
        "self.matches('^(100([.]0{1,3})?|[0-9]{1,2}([.][0-9]{1,3})?)%$')",
        "must be a percentage from 0% to 100%, like 5% or 0.25%",
    ),
]
"""A percentage as text; :func:`llmos_operator.api.quantity.parse_percent_milli` reads it."""

Capability = Annotated[
    str,
    StringConstraints(max_length=8),
    Rule(
        "self.matches('^[0-9]{1,3}[.][0-9]{1,3}$')", 'must be a CUDA compute capability as text, like "8.0"'
    ),
]
"""A CUDA compute capability as text."""

Time = Annotated[str, StringConstraints(max_length=40), Format("date-time")]
"""An RFC 3339 time."""

ObjectName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=253),
    Rule(
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "must be the name of an object: lower case letters, digits, '-' and '.', like team-a",
    ),
]
"""The name of a Kubernetes object."""

LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
LabelValue = Annotated[str, StringConstraints(max_length=63)]
Sha256 = Annotated[
    str,
    StringConstraints(max_length=71),
    Rule(
        "self == '' || self.matches('^sha256:[0-9a-f]{64}$')", "must be sha256: and 64 lower case hex digits"
    ),
]
