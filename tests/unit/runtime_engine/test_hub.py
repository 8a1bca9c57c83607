"""Models from a hub: the real client against a mirror of the hub on loopback."""

import pytest

from llmos_operator.clock import SystemClock
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.runtime.loader import progress
from llmos_operator.runtime.loader.hub import download
from llmos_operator.runtime.loader.progress import Stages
from tests.support.hub import hub_mirror

SIZES = {"config.json": 24, "model-1.safetensors": 3 << 20, "model-2.safetensors": 5 << 20}


@pytest.fixture
def endpoint(tmp_path):
    folder = tmp_path / "store" / "acme" / "tiny"
    folder.mkdir(parents=True)
    for name, size in SIZES.items():
        (folder / name).write_bytes(b" " * size)
    with hub_mirror(tmp_path / "store") as url:
        yield url


def test_every_byte_counts_once_up_to_the_total(endpoint, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(progress, "_EMIT_SECONDS", 0.0)
    told = []
    load = Load("hf://acme/tiny", cache_dir=str(tmp_path / "cache"), hf_endpoint=endpoint)
    resolved = download(load, Stages(SystemClock(), told.append))
    assert resolved.fetched == sum(SIZES.values())
    assert {one.bytes_total for one in told} == {0, sum(SIZES.values())}
    done = [one.bytes_done for one in told]
    assert done == sorted(done)
    assert done[-1] == sum(SIZES.values())
