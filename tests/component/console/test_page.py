"""The console's page in a real headless Chromium: 1,000 devices, live, in both colour schemes.

With LLMOS_SCREENSHOTS=FOLDER it leaves the pictures of the documentation there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import browsing
from tests.support.builders import a_workload
from tests.support.consoles import HOSTILE, SECRET, a_fleet, an_hour, misbehave, populate, shown

if TYPE_CHECKING:
    from tests.support.browser import Page

pytestmark = [pytest.mark.component, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_page_shows_a_thousand_devices_and_what_changes(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("LLMOS_SCREENSHOTS") or tmp_path)
    async with shown(a_fleet()) as fleet, browsing(tmp_path / "profile") as page:
        populate(fleet)
        await an_hour(fleet)
        await page.open(fleet.url, width=1440, height=1400)
        await page.until("document.querySelectorAll('.cell').length === 1000", "1,000 devices")
        await page.until("document.querySelectorAll('#charts polyline').length >= 6", "the charts")
        await page.picture(pictures / "console-light.png")
        await _explains_a_workload(page)
        await page.ask("document.getElementById('workloads-title').scrollIntoView()")
        await page.picture(pictures / "console-workload.png")
        await page.ask("scrollTo(0, 0)")

        misbehave(fleet)
        # Nobody has reloaded anything: a workload gets a place, and the page shows it.
        fleet.cluster.running(a_workload("newcomer", "team-a").gpus(8), "a100-059", range(8))
        fleet.tell("team-a/newcomer", phase="Loading", decision={"reason": "Bound", "message": "just now"})
        fleet.later()
        await page.until("document.body.innerText.includes('team-a/newcomer')", "the newcomer")
        await _says_what_the_store_holds(page)
        await _walks_by_keyboard(page)
        await _tells_the_last_hour(page)
        await page.scheme(dark=True)
        dark = "getComputedStyle(document.body).backgroundColor === 'rgb(20, 24, 27)'"
        await page.until(dark, "the dark colours")
        await page.ask("document.querySelector('[value=tenants]').click()")
        await page.picture(pictures / "console-dark.png")
        assert page.complaints == []

        refused = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
        assert await page.ask(refused) == "refused"
        assert "Content Security Policy" in page.complaints[0]


async def _says_what_the_store_holds(page: Page) -> None:
    text = await page.ask("document.body.innerText")
    for words in ("1000 on 125 nodes", "research", "giant", "LargerThanAnyDevice", HOSTILE):
        assert words in text
    assert SECRET not in await page.ask("document.documentElement.outerHTML")
    for words in ("rack r0", "19000 W", "node h100-000", "4500 W"):
        assert words in await page.ask("document.getElementById('power').innerText")
    await page.ask("document.querySelector('[value=strain]').click()")
    assert await page.ask("document.querySelectorAll('.strain .cell.down').length") == 1
    worn = "[...document.querySelectorAll('.cell.down')][0].getAttribute('aria-label')"
    assert "counts 95 % less (held down 85 % of its time, memory risk 10 %) and takes nothing new" in (
        await page.ask(worn)
    )
    await page.ask("document.querySelector('[value=ledger]').click()")
    for words in ("h100-003", "FallenOffBus; would be done now"):
        assert words in await page.ask("document.getElementById('remedies').innerText")
    assert await page.ask("document.images.length") == 0  # a decision's text is text
    assert await page.ask("document.querySelectorAll('.cell.Unhealthy').length") == 1
    assert await page.ask("document.querySelectorAll('.cell.Degraded').length") == 1
    states = await page.ask(
        "[...document.querySelectorAll('.node.off b')].map((n) => n.dataset.state).sort()"
    )
    assert states == ["cordoned", "not ready", "silent"]


async def _explains_a_workload(page: Page) -> None:
    await page.ask("document.querySelector('[data-key=\"team-a/train-70b\"] button').click()")
    await page.until("!document.getElementById('detail').hidden", "the chosen workload")
    text = await page.ask("document.getElementById('detail').innerText")
    assert "94 nodes DevicesInUse: 8 wanted, 3 free on h100-004" in text
    assert "Scheduled False NoCapacity" in text
    assert "https://models.example/train-70b" in text


async def _walks_by_keyboard(page: Page) -> None:
    await page.ask("document.querySelector('.cell').focus()")
    await _press(page, "ArrowRight")
    said = await page.ask("document.getElementById('device').textContent")
    assert said.startswith("a100-000 device 1, A100-80G 80.0 GiB: ")


async def _tells_the_last_hour(page: Page) -> None:
    """Each chart says in words what it shows, and its moments can be read with keys alone."""
    names = await page.ask(
        "[...document.querySelectorAll('#charts svg')].map((n) => n.getAttribute('aria-label'))"
    )
    assert [one.partition(":")[0] for one in names] == [
        "Devices busy",
        "Device memory",
        "Workloads that wait",
        "Requests in progress",
        "Wait for the first token",
    ]
    assert "observed" in names[1]
    reserved = names[1].partition("reserved ")[2].partition(" now")[0]
    assert f"reserved{reserved} of 67.2 TiB" in (
        await page.ask("document.getElementById('totals').textContent")
    )
    assert names[2] == "Workloads that wait: 2 now, between 2 and 2"
    assert all("not told" not in one for one in names)
    await page.ask("document.querySelector('#charts svg').focus()")
    await _press(page, "ArrowLeft")
    before = await page.ask("document.getElementById('moment').textContent")
    for words in ("devices busy ", "observed ", "workloads that wait 2", "wait for the first token "):
        assert words in before
    await _press(page, "Home")
    first = await page.ask("document.getElementById('moment').textContent")
    assert first.partition(": ")[0] != before.partition(": ")[0]
    shown_at = "[...document.querySelectorAll('.cursor')].map((n) => n.getAttribute('x1'))"
    assert await page.ask(shown_at) == ["0"] * 5
    await page.ask("document.activeElement.blur()")
    assert (await page.ask("document.getElementById('moment').textContent")).startswith("Every 15 s")


async def _press(page: Page, key: str) -> None:
    for kind in ("rawKeyDown", "keyUp"):
        await page.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)
