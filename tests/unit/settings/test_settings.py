from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.settings import AgentSettings, BadSettings, GatewaySettings, OperatorSettings, load

if TYPE_CHECKING:
    from pathlib import Path


def test_defaults_are_enough_to_start() -> None:
    for kind in (OperatorSettings, AgentSettings, GatewaySettings):
        assert load(kind, environ={}).health_port == 8080


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("ingestPort: 1000\nlease: {duration: 19}\nscheduling: {writes: 3}\n")
    found = load(OperatorSettings, str(file), {"LLMOS_INGEST_PORT": "2000", "LLMOS_LEASE__RETRY": "1"})
    assert (found.ingest_port, found.lease.duration, found.lease.retry) == (2000, 19.0, 1.0)
    assert found.scheduling.writes == 3


def test_lists_and_mappings_are_yaml_in_the_environment() -> None:
    env = {"LLMOS_SOURCES__ALLOWED_HOSTS": "[a.example, b.example]", "LLMOS_RUNTIME__ENV": "{A: '1'}"}
    found = load(OperatorSettings, environ=env)
    assert found.sources.allowed_hosts == ("a.example", "b.example")
    assert found.runtime.env == {"A": "1"}


def test_variables_kubernetes_injects_for_services_are_ignored() -> None:
    env = {
        "LLMOS_OPERATOR_SERVICE_HOST": "10.0.0.1",
        "LLMOS_OPERATOR_PORT": "tcp://10.0.0.1:8090",
        "LLMOS_GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.2",
    }
    assert load(OperatorSettings, environ=env) == load(OperatorSettings, environ={})


def test_every_bad_value_is_named_with_its_source_and_meaning() -> None:
    env = {"LLMOS_HEALTH_PORT": "99999", "LLMOS_LEASE__DURATION": "soon"}
    with pytest.raises(BadSettings) as caught:
        load(OperatorSettings, environ=env)
    text = str(caught.value)
    for part in (
        "healthPort",
        "LLMOS_HEALTH_PORT",
        "'99999'",
        "lease.duration",
        "LLMOS_LEASE__DURATION",
        "'soon'",
    ):
        assert part in text


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("leese: {duration: 9}\n")
    with pytest.raises(BadSettings, match="leese"):
        load(OperatorSettings, str(file), {})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text"])
def test_a_file_that_holds_no_settings_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(BadSettings, match=r"c\.yaml"):
        load(OperatorSettings, str(file), {})


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(BadSettings, match="/nowhere"):
        load(OperatorSettings, "/nowhere.yaml", {})


def test_an_empty_file_means_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("")
    assert load(OperatorSettings, str(file), {}) == load(OperatorSettings, environ={})


def test_a_leader_must_stop_writing_before_another_may_start() -> None:
    with pytest.raises(BadSettings, match="renewDeadline"):
        load(OperatorSettings, environ={"LLMOS_LEASE__RENEW_DEADLINE": "8", "LLMOS_LEASE__DURATION": "6"})


def test_runtimes_never_run_as_root() -> None:
    with pytest.raises(BadSettings, match="runAsUser"):
        load(OperatorSettings, environ={"LLMOS_RUNTIME__RUN_AS_USER": "0"})
