"""ModelWorkload: how a training run learns. No field holds a fraction as a number: decimals are text."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from llmos_operator.api.schema import KubeModel, ListSet, Percent, Rule

DECIMAL_PATTERN = "^[0-9]{1,6}([.][0-9]{1,9})?(e-[0-9]{1,2})?$"

Decimal = Annotated[
    str,
    StringConstraints(max_length=24),
    Rule(
        f"self.matches('{DECIMAL_PATTERN}')",
        'must be a decimal number as text, like "0.0002" or "2e-4"',
    ),
]
"""A number that is not negative, as text."""


class LearningSchedule(StrEnum):
    """How the learning rate falls after the warm-up."""

    COSINE = "Cosine"
    LINEAR = "Linear"
    CONSTANT = "Constant"


class LoraSettings(KubeModel):
    """Size and place of the adapter, for the methods lora and qlora."""

    rank: int = Field(default=16, ge=1, le=256, description="Rank of the adapter's matrices.")
    alpha: int = Field(
        default=32, ge=1, le=1024, description="The adapter's output is multiplied by alpha / rank."
    )
    dropout: Percent = Field(
        default="0%", description="Share of the adapter's inputs that is left out at random while training."
    )
    targets: Annotated[
        tuple[
            Annotated[
                str,
                StringConstraints(min_length=1, max_length=63),
                Rule(
                    "self.matches('^[A-Za-z0-9_]+$')",
                    "must be the last part of the names of linear layers, like q_proj",
                ),
            ],
            ...,
        ],
        ListSet(),
        Field(max_length=16),
    ] = Field(
        default=(),
        description="Linear layers that get an adapter, by the last part of their name, like q_proj. Empty: all of them "
        "but the head.",
    )


class Training(KubeModel):
    """How long and how fast the run learns."""

    rules = (
        Rule(
            "!has(self.steps) || self.epochs == 3",
            "give either epochs or steps: leave epochs out when steps are given",
            ".steps",
        ),
    )
    epochs: int = Field(default=3, ge=1, le=1000, description="How often the whole data are read.")
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None, description="Updates of the weights, instead of epochs."
    )
    batch_size: int = Field(
        default=8,
        ge=1,
        le=4096,
        description="Samples of one update. They are computed in as many parts as the memory demands, with the same result.",
    )
    max_length: int = Field(
        default=1024,
        ge=16,
        le=1 << 20,
        description="Tokens of a sample at most. Longer texts are split, longer conversations cut at their end.",
    )
    learning_rate: Annotated[
        str,
        StringConstraints(max_length=24),
        Rule(
            f"self == '' || self.matches('{DECIMAL_PATTERN}')",
            'must be a decimal number as text, like "0.0002" or "2e-4"',
        ),
    ] = Field(
        default="",
        description='Largest learning rate, a decimal as text like "0.0002". Empty: 0.0002 for an adapter, 0.00001 for '
        "method full.",
    )
    schedule: LearningSchedule = Field(
        default=LearningSchedule.COSINE,
        description="How the learning rate falls after the warm-up: Cosine or Linear to a tenth and to 0, or Constant.",
    )
    warmup: Percent = Field(
        default="3%", description="Share of the steps in which the learning rate rises from 0."
    )
    weight_decay: Decimal = Field(default="0", description="AdamW's weight decay.")
    max_gradient_norm: Decimal = Field(
        default="1", description="Gradients of a larger norm are scaled down to it. 0: never."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=(1 << 31) - 1,
        description="Decides the order of the samples and the adapter's first weights.",
    )
    validation: Percent = Field(
        default="0%",
        description="Share of the samples that is kept from training and measured after each epoch and at the end.",
    )
