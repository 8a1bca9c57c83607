from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from llmos_operator.cli import manifests
from llmos_operator.cli.failures import CommandFailed

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """
apiVersion: llmos.dev/v1alpha1
kind: ModelWorkload
metadata: {name: chat}
spec:
  model: {uri: "hf://acme/tiny"}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "new.yaml"
    path.write_text(text)
    return str(path)


def refused(folder: Path, text: str) -> list[str]:
    with pytest.raises(CommandFailed) as caught:
        manifests.read(written(folder, text), "team")
    return str(caught.value).splitlines()


def test_documents_keep_their_order_and_get_the_namespace(tmp_path: Path) -> None:
    text = f"{GOOD}---\n{GOOD.replace('chat', 'other, namespace: lab')}---\nkind: Secret\nmetadata: {{name: s}}\n"
    found = manifests.read(written(tmp_path, text), "team")
    assert [one.key for one in found.documents] == ["team/chat", "lab/other"]
    assert found.documents[0].body["metadata"]["namespace"] == "team"
    assert [one.endswith("document 3 (Secret s)") for one in found.left_out] == [True]


def test_a_dash_reads_standard_input_and_lists_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    item = GOOD.strip().replace("\n", "\n    ")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"kind: List\napiVersion: v1\nitems:\n  - {item}\n"))
    (one,) = manifests.read("-", "team").documents
    assert (one.key, one.where) == ("team/chat", "standard input, document 1 (ModelWorkload chat)")


def test_a_bad_value_is_named_with_document_field_value_and_what_is_allowed(tmp_path: Path) -> None:
    lines = refused(tmp_path, f"{GOOD}  replicas: -1\n  quantization: {{mode: Best}}\n")
    assert len(lines) == 2
    for line, words in zip(
        sorted(lines),
        (
            ('spec.quantization.mode = "Best"', "'Auto', 'None' or 'Fixed'"),
            ("spec.replicas = -1", "equal to 0"),
        ),
        strict=True,
    ):
        assert "document 1 (ModelWorkload chat): " in line
        for word in words:
            assert word in line


def test_an_unknown_field_is_refused_as_the_api_server_would(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, f"{GOOD}  scheduling: {{disruption: {{minRunTime: 1m}}}}\n")
    assert line.endswith("spec.scheduling.disruption.minRunTime: is not a field; did you mean minRuntime?")


def test_open_parts_and_metadata_may_hold_what_the_types_do_not_read(tmp_path: Path) -> None:
    text = (
        GOOD.replace("{name: chat}", "{name: chat, ownerReferences: [], labels: {a: b}}")
        + "  podTemplate: {spec: {containers: [{name: app, image: i, tty: true}]}}\n"
    )
    assert manifests.read(written(tmp_path, text), "team").documents[0].key == "team/chat"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("kind: Secret\n", "holds no ModelWorkload"),
        ("just text", "is not a Kubernetes object"),
        (GOOD.replace("v1alpha1", "v9"), "apiVersion = 'llmos.dev/v9': must be llmos.dev/v1alpha1"),
        (GOOD.replace("name: chat", "generateName: c-"), "metadata.name is required"),
        (f"{GOOD}---\n{GOOD}", "is in the file twice"),
    ],
)
def test_files_that_cannot_be_meant_say_so(tmp_path: Path, text: str, words: str) -> None:
    assert words in "\n".join(refused(tmp_path, text))
