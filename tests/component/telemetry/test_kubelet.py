"""Who holds which device, as a kubelet tells it: the agent's own gRPC client against Google's server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmos_operator.telemetry.kubelet.call import CallFailed, unary
from llmos_operator.telemetry.kubelet.follow import KubeletDevices
from llmos_operator.telemetry.kubelet.pod_resources import LIST, Holder, read
from tests.support.deviceplugin import RESOURCE, KubeletDouble, NoGoError, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.telemetry.kubelet.pod_resources import Allocations
    from tests.support.nvml import Double

pytestmark = [pytest.mark.anyio, pytest.mark.component]

A, B, C = (f"GPU-{name}{'0' * 7}-0000-0000-0000-000000000000" for name in "abc")


@pytest.fixture(scope="module", autouse=True)
def _program() -> None:
    try:
        build()
    except NoGoError as error:
        pytest.skip(str(error))


@pytest.fixture
def machine(double: Double) -> Double:
    """Three GPUs, in the file both the NVML double and the device plugin read."""
    for index, uuid in enumerate((A, B, C)):
        double.with_gpu(index, uuid=uuid)
    return double.write()


@pytest.fixture
def kubelet(machine: Double) -> Iterator[KubeletDouble]:
    # A socket's path has at most 107 bytes; pytest's folders can be longer.
    with tempfile.TemporaryDirectory(prefix="llmos-") as folder:
        made = KubeletDouble(Path(folder), machine.path)
        made.start_kubelet()
        made.start_plugin()
        yield made
        made.close()


async def until(kubelet: KubeletDouble, seen: Callable[[Allocations], bool], what: str) -> Allocations:
    async with asyncio.timeout(90):
        while True:
            told = await read(str(kubelet.socket))
            if seen(told):
                return told
            await asyncio.sleep(0.02)
    raise AssertionError(what)


async def test_the_kubelet_tells_who_holds_which_device_and_which_are_offered(kubelet: KubeletDouble) -> None:
    kubelet.run("ml/train", 2, container="trainer")
    kubelet.run("web/plain", 0)
    assert kubelet.granted("ml/train", "trainer")["env"] == {"NVIDIA_VISIBLE_DEVICES": f"{C},{B}"}
    told = await until(kubelet, lambda one: len(one.holders) == 2, "both devices are told")
    holder = Holder("ml/train", "trainer", RESOURCE)
    assert told.holders == {B: (holder,), C: (holder,)}
    assert told.offered == {A: RESOURCE, B: RESOURCE, C: RESOURCE}
    kubelet.remove("ml/train")
    await until(kubelet, lambda one: not one.holders, "its devices are free again")


async def test_a_device_the_plugin_calls_unhealthy_is_not_offered_until_it_is_well(
    kubelet: KubeletDouble, machine: Double
) -> None:
    await until(kubelet, lambda one: len(one.offered) == 3, "all are offered")
    machine.set(gpu__1__plugin="Unhealthy").write()
    told = await until(kubelet, lambda one: len(one.offered) == 2, "one is not offered")
    assert told.offered.keys() == {A, C}
    kubelet.run("ml/three", 3)
    assert "Requested: 3, Available: 2, which is unexpected" in kubelet.granted("ml/three")["refused"]
    machine.set(gpu__1__plugin="Healthy").write()
    await until(kubelet, lambda one: len(one.offered) == 3, "it is offered again")


async def test_the_plugin_registers_again_with_a_kubelet_that_was_restarted(kubelet: KubeletDouble) -> None:
    await until(kubelet, lambda one: len(one.offered) == 3, "all are offered")
    kubelet.stop("kubelet")
    kubelet.start_kubelet()
    await until(kubelet, lambda one: len(one.offered) == 3, "all are offered to the new one")


async def test_shares_of_a_device_are_the_device(kubelet: KubeletDouble) -> None:
    kubelet.stop("plugin")
    kubelet.start_plugin("-replicas", "4")
    kubelet.run("ml/one", 1)
    kubelet.granted("ml/one")
    kubelet.run("ml/two", 1)
    kubelet.granted("ml/two")
    told = await until(kubelet, lambda one: bool(one.holders), "shares are told")
    assert {device: [one.pod for one in held] for device, held in told.holders.items()} == {
        C: ["ml/one", "ml/two"]
    }
    assert told.offered.keys() == {A, B, C}


async def test_an_answer_of_many_frames_is_read_whole(kubelet: KubeletDouble) -> None:
    for number in range(1500):
        kubelet._pods[f"many/pod-{number}"] = {
            "namespace": "many",
            "name": f"pod-{number:05d}-with-a-rather-long-name-as-deployments-make-them",
            "containers": [{"name": "main"}],
        }
    kubelet.run("ml/one", 1)
    kubelet.granted("ml/one")
    answer = await unary(str(kubelet.socket), LIST)
    assert len(answer) > 2 * 65_535  # beyond what may be sent before the reader acknowledges
    told = await read(str(kubelet.socket))
    assert told.holders == {C: (Holder("ml/one", "main", RESOURCE),)}


async def test_a_call_the_server_does_not_know_says_so(kubelet: KubeletDouble) -> None:
    with pytest.raises(CallFailed, match="unknown method Lost") as raised:
        await unary(str(kubelet.socket), "/v1.PodResourcesLister/Lost")
    assert raised.value.status == 12


async def test_a_kubelet_that_is_away_is_missed_once_and_its_word_is_kept(
    kubelet: KubeletDouble, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[bool] = []
    devices = KubeletDevices(str(kubelet.socket), interval=1.0, note=tries.append)
    await until(kubelet, lambda one: len(one.offered) == 3, "all are offered")
    await devices.ask()
    heard = devices.allocations
    assert heard is not None
    assert (len(heard.offered), devices.trouble) == (3, "")
    kubelet.stop("kubelet")
    kubelet.socket.unlink()  # as the end of a node leaves it: a kubelet that is killed leaves the socket
    await devices.ask()
    await devices.ask()
    assert devices.allocations is heard
    assert devices.trouble.startswith(f"no socket {kubelet.socket}; ")
    warnings = [one for one in caplog.records if one.levelname == "WARNING"]
    assert len(warnings) == 1
    kubelet.start_kubelet()
    await devices.ask()
    assert devices.trouble == ""
    assert tries == [True, False, False, True]


_WITHOUT_SOCKET = """
import asyncio, sys
import llmos_operator.telemetry.agent, llmos_operator.telemetry.nvml.backend
from llmos_operator.telemetry.kubelet.follow import KubeletDevices
devices = KubeletDevices(sys.argv[1], interval=1.0)
asyncio.run(devices.ask())
print(devices.trouble.split(";")[0], "h2" in sys.modules)
"""


def test_an_agent_without_a_socket_loads_no_http2(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT_SOCKET, str(tmp_path / "absent")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=90)
    assert done.stdout == f"no socket {tmp_path / 'absent'} False\n"


async def test_nobody_is_asked_where_no_socket_is_set() -> None:
    devices = KubeletDevices("", interval=0.0)
    await devices.run()
    assert (devices.allocations, devices.trouble) == (None, "")
