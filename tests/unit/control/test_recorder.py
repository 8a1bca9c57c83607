from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.control.recorder import CycleRecorder
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recording import load, plan_document, replay
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

if TYPE_CHECKING:
    from pathlib import Path

POLICY = Policy()

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


async def kept(recorder: CycleRecorder, cluster: ClusterBuilder, now: float) -> None:
    snapshot = cluster.snapshot()
    recorder.take(snapshot, plan(snapshot, POLICY, now))
    await recorder.flush()


async def test_the_newest_cycles_are_kept_and_lead_to_the_plan_that_was_made(tmp_path: Path) -> None:
    recorder = CycleRecorder(str(tmp_path / "cycles"), 2, POLICY)
    cluster = a_cluster(a_node("n1").with_gpus(1), a_workload("chat"))
    for second in range(4):
        await kept(recorder, cluster, NOW + second)
    files = files_of(tmp_path / "cycles")
    assert [one.name for one in files] == ["cycle-001700000002000.json", "cycle-001700000003000.json"]
    found = load(files[-1].read_text())
    assert found.plan == plan_document(replay(found))
    assert [one["action"] for one in found.plan["actions"]] == ["Bind"]


async def test_a_cycle_that_decides_nothing_new_is_not_kept(tmp_path: Path) -> None:
    recorder = CycleRecorder(str(tmp_path), 10, POLICY)
    cluster = a_cluster(a_node("n1").with_gpus(1), a_workload("wide").gpus(8))
    for second in range(3):
        await kept(recorder, cluster, NOW + second)
    assert len(files_of(tmp_path)) == 1


async def test_a_folder_that_cannot_be_written_is_a_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    recorder = CycleRecorder(str(tmp_path / "file"), 2, POLICY)
    await kept(recorder, a_cluster(a_node("n1").with_gpus(1), a_workload("chat")), NOW)
    assert "cycle not recorded" in caplog.text
