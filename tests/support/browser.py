"""A headless Chromium that a test looks through, by the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ : one page, its errors kept, its screen as PNG.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from llmos_operator.errors import Permanent
from scripts.chromium import resolve
from scripts.debian import NO_PACKAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_SECONDS = 90.0
_ANSWER_SECONDS = 60.0
_LISTENS = re.compile(rb"DevTools listening on (ws://\S+)")


class Page:
    """One open page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[
            str
        ] = []  # errors, refused loads, exceptions: what a developer would see in red
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""

    async def listen(self) -> None:
        """Take what the browser says until it is closed."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.complaints.append(json.dumps(said["params"]["entry"]))

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._waiting[number] = answer = asyncio.get_running_loop().create_future()
        body: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(body | ({"sessionId": self._session} if self._session else {}))
        said: dict[str, Any] = await asyncio.wait_for(answer, _ANSWER_SECONDS)
        assert "error" not in said, f"{method}: {said['error']}"
        result: dict[str, Any] = said["result"]
        return result

    async def attach(self) -> None:
        target = await self.send("Target.createTarget", url="about:blank")
        found = await self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")

    async def open(self, url: str, *, width: int, height: int, dark: bool = False) -> None:
        """Go to an address with a window and a colour scheme."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        await self.scheme(dark=dark)
        await self.send("Page.navigate", url=url)

    async def scheme(self, *, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[feature])

    async def ask(self, script: str) -> Any:
        """Return the value of a script, awaited if it is a promise."""
        said = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, script: str, what: str, seconds: float = 60.0) -> None:
        """Wait until a script is true."""
        try:
            async with asyncio.timeout(seconds):
                while not await self.ask(script):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            text = await self.ask("document.body.innerText.slice(0, 2000)")
            pytest.fail(f"{what} did not come; the page shows: {text}; it complains: {self.complaints}")

    async def picture(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        said = await self.send("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(said["data"]))


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """Start a browser with its profile in ``folder`` and open a page; it ends with the block.

    Skips where no package of it exists, fails where it could not be had.
    """
    try:
        browser = resolve()
    except Permanent as error:
        if error.reason == NO_PACKAGE:
            pytest.skip(str(error))
        raise
    options = (
        "--headless",
        "--no-sandbox",  # it runs as root in CI, and opens nothing but our own page
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    )
    process = await asyncio.create_subprocess_exec(
        str(browser.program),
        *options,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **browser.environment},
        start_new_session=True,
    )
    listening: list[asyncio.Task[None]] = []
    try:
        async with aiohttp.ClientSession() as client:
            address = await asyncio.wait_for(_address(process), START_SECONDS)
            listening.append(asyncio.create_task(_drain(process)))
            async with client.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                listening.append(asyncio.create_task(page.listen()))
                await page.attach()
                yield page
    finally:
        for task in listening:
            task.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its own children too; the profile is a test's folder
        await process.wait()


async def _address(process: asyncio.subprocess.Process) -> str:
    said = b""
    async for line in process.stderr or ():
        said += line
        if found := _LISTENS.search(line):
            return found[1].decode()
    pytest.fail(f"the browser ended: {said.decode(errors='replace')[-2000:]}")


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Read what it goes on to say, so that its pipe does not fill up."""
    async for _ in process.stderr or ():
        pass
