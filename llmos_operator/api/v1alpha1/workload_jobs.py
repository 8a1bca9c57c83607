"""ModelWorkload: the blocks of work that ends, fine-tuning and batch inference."""

from enum import StrEnum

from pydantic import Field

from llmos_operator.api.meta import LocalReference
from llmos_operator.api.schema import KubeModel, PositiveDuration, Rule
from llmos_operator.api.v1alpha1.workload_model import DataUri, OutputUri
from llmos_operator.api.v1alpha1.workload_training import LoraSettings, Training

_BACKOFF = (
    "Failures of the program that are followed by a new try; one more, and the run has failed. Preemptions, evictions and lost nodes "
    "do not count, and a failure that a new try cannot heal, like input that is not there, ends the run at once."
)
_KEYS = (
    "Secret of this namespace for data in s3 and gs: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and if needed AWS_SESSION_TOKEN, "
    "AWS_REGION, AWS_ENDPOINT_URL."
)


class FineTuneMethod(StrEnum):
    """Ways to train."""

    LORA = "lora"
    QLORA = "qlora"
    FULL = "full"


class DataSource(KubeModel):
    """Data to read."""

    uri: DataUri = Field(
        description="Where the data is: pvc://claim/path (a claim of this namespace), s3://bucket/key, gs://bucket/key, https, and file, the "
        "last two where the operator's settings allow it. hf is reserved."
    )


class DataSink(KubeModel):
    """Place to write to."""

    uri: OutputUri = Field(
        description="Where to write: pvc://claim/path (a claim of this namespace), s3://bucket/key, gs://bucket/key, and file where the "
        "operator's settings allow it."
    )


class Checkpoint(KubeModel):
    """How often the state of a training run is saved, and where."""

    every: PositiveDuration = Field(
        default="5m", description="Time between checkpoints; what a preemption can lose at most."
    )
    uri: OutputUri = Field(description="Where checkpoints are written, as output.uri.")


class FineTune(KubeModel):
    """A training run. The fields that decide its result cannot be changed."""

    rules = (
        Rule("self.method == oldSelf.method", "method cannot be changed: create a new workload", ".method"),
        Rule(
            "self.dataset.uri == oldSelf.dataset.uri",
            "dataset cannot be changed: create a new workload",
            ".dataset",
        ),
        Rule(
            "self.output.uri == oldSelf.output.uri",
            "output cannot be changed: create a new workload",
            ".output",
        ),
        Rule("self.lora == oldSelf.lora", "lora cannot be changed: create a new workload", ".lora"),
        Rule(
            "self.training == oldSelf.training",
            "training cannot be changed: create a new workload",
            ".training",
        ),
    )
    method: FineTuneMethod = Field(
        default=FineTuneMethod.LORA,
        description="lora: train an adapter beside frozen weights. qlora: the same on int8 or int4 weights. full: train all "
        "weights, which takes at least 16 bytes of memory for each.",
    )
    dataset: DataSource = Field(
        description="What to train on: JSON lines with `messages`, `prompt` and `completion`, or `text`."
    )
    output: DataSink = Field(description="Where the result is written.")
    checkpoint: Checkpoint | None = Field(
        default=None, description="How often the run is saved, and where. Empty: a preemption starts it anew."
    )
    lora: LoraSettings = Field(
        default_factory=LoraSettings, description="The adapter of the methods lora and qlora."
    )
    training: Training = Field(default_factory=Training, description="How long and how fast it learns.")
    secret_ref: LocalReference | None = Field(default=None, description=_KEYS)
    backoff_limit: int = Field(default=3, ge=0, le=100, description=_BACKOFF)


class Batch(KubeModel):
    """A run over a file of requests. Input and output cannot be changed."""

    rules = (
        Rule(
            "self.input.uri == oldSelf.input.uri", "input cannot be changed: create a new workload", ".input"
        ),
        Rule(
            "self.output.uri == oldSelf.output.uri",
            "output cannot be changed: create a new workload",
            ".output",
        ),
    )
    input: DataSource = Field(description="JSON lines of requests in the OpenAI batch format.")
    output: DataSink = Field(description="Where results are written, one line a request.")
    completion_window: PositiveDuration = Field(
        default="24h",
        description="Time from the creation of the workload within which the run is to end, waiting included. Then it has failed with "
        "reason DeadlineExceeded, and what was answered so far stays beside the output.",
    )
    secret_ref: LocalReference | None = Field(default=None, description=_KEYS)
    backoff_limit: int = Field(default=3, ge=0, le=100, description=_BACKOFF)
