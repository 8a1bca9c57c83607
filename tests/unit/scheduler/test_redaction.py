"""No secret leaves the cluster in a URI, and what is left leads to the same plan."""

from __future__ import annotations

import json

import pytest

from llmos_operator.scheduler.redaction import redact, without_secrets

SIGNED = "https://models.example/a.gguf?X-Signature=hunter2"


@pytest.mark.parametrize(
    ("uri", "bare"),
    [
        ("hf://org/name", "hf://org/name"),
        ("https://h/a@b/c", "https://h/a@b/c"),
        ("https://me:pass@h/a", "https://h/a"),
        ("https://me:p@ss@h/a", "https://h/a"),
        ("https://h/a?sig=x@y/z", "https://h/a"),
        ("https://h/a#part", "https://h/a"),
        ("https://h?sig=x/y", "https://h"),
        ("https://h?sig=x@y", "https://"),
        ("https://me:p?ss@h/a", "https://"),
    ],
)
def test_users_passwords_queries_and_fragments_go(uri: str, bare: str) -> None:
    assert without_secrets(uri) == bare


def test_a_model_is_named_alike_wherever_it_is_named() -> None:
    other = SIGNED + "3"
    document = json.dumps({"uri": SIGNED, "says": [f"{SIGNED}: not there", f"as '{other}'."], "n": 1})
    made = json.loads(redact(document, [(SIGNED, "main"), (other, "main"), (SIGNED, "v2")]))
    bare = "https://models.example/a.gguf?redacted="
    assert made == {"uri": f"{bare}1", "says": [f"{bare}1: not there", f"as '{bare}2'."], "n": 1}


def test_a_uri_nobody_listed_loses_its_secrets_too() -> None:
    text = "moved to https://cdn.example/x?Signature=hunter2 for now"
    assert json.loads(redact(json.dumps([text]), [])) == ["moved to https://cdn.example/x for now"]


@pytest.mark.parametrize("secret", ['hun"ter', "hun\\ter", "hun ter", "hünter", "hun'ter", "hun\tter"])
def test_letters_that_json_escapes_hide_nothing(secret: str) -> None:
    uri = f"https://h/a?sig={secret}#end"
    document = json.dumps({"uri": uri, "message": f"{uri} is slow"}, ensure_ascii=False)
    made = redact(document, [(uri, "main")])
    assert json.loads(made) == {
        "uri": "https://h/a?redacted=1",
        "message": "https://h/a?redacted=1 is slow",
    }


def test_redacting_again_changes_nothing() -> None:
    once = redact(json.dumps([SIGNED]), [(SIGNED, "main")])
    assert redact(once, [(json.loads(once)[0], "main")]) == once
