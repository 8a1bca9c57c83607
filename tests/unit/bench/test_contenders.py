"""Programs and servers under measurement: real processes, small ones."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from tests.bench.bars import processes
from tests.bench.bars.contenders import ContenderLost, Program, Server, Worker, free_port
from tests.bench.bars.work import Job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

JOB = Job("x", 2, ("a b", "c", "d e f"), (3, 4, 5))
WORKER = """
import json, sys
print("a library says hello", flush=True)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if sum(map(len, order["prompts"])) > 2 and "fail" in sys.argv:
        sys.exit("out of ideas")
    print(json.dumps({"tokens": sum(order["tokens"]), "cpu": 0.5, "wall": 1.0}), flush=True)
"""
SERVER = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
if os.fork() == 0:
    until = time.process_time() + 0.3
    while time.process_time() < until: pass
    time.sleep(600)
class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        order = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if order["prompt"] == "c" and "fail" in sys.argv:
            print("no room left", file=sys.stderr, flush=True)
            self.send_response(500); self.end_headers(); self.wfile.write(b"no room left"); return
        self.send_response(200); self.end_headers()
        for _ in range(order["max_tokens"]):
            self.wfile.write(b'data: {"choices": [{"text": "x"}]}\\n\\n')
        if "usage" in sys.argv:
            self.wfile.write(b'data: {"choices": [], "usage": {"completion_tokens": %d}}\\n\\n' % (2 * order["max_tokens"]))
        self.wfile.write(b"data: [DONE]\\n\\n")
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(one) for one in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def a_worker(folder: Path, *words: str) -> Worker:
    return Worker("w", Program([sys.executable, "-c", WORKER, *words], folder / "w.log"), Letters())


def a_server(folder: Path, *words: str, rests: bool = True) -> Server:
    port = free_port()
    program = Program([sys.executable, "-c", SERVER, str(port), *words], folder / "s.log")
    return Server(
        "s",
        program,
        f"http://127.0.0.1:{port}",
        "/health",
        lambda prompt, tokens: {"prompt": prompt, "max_tokens": tokens},
        rests=rests,
    )


async def gone(pids: Sequence[int]) -> None:
    async with asyncio.timeout(90):
        while any(state_of(pid) not in {"", "Z"} for pid in pids):
            await asyncio.sleep(0.02)


async def resting(pids: Sequence[int]) -> None:
    async with asyncio.timeout(90):
        while {state_of(one) for one in pids} != {"T"}:
            await asyncio.sleep(0.02)


def state_of(pid: int) -> str:
    fields = processes._fields(pid)
    return fields[0] if fields else ""


def test_a_workers_batches_are_added_up_and_it_rests_between_jobs(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = a_worker(tmp_path)
        await worker.start()
        try:
            for _ in range(2):
                await resting([worker.program.pid])
                sample = await worker.run(JOB)
                assert (sample.tokens, sample.cpu, sample.wall) == (12, 1.0, 2.0)
            await resting([worker.program.pid])
        finally:
            await worker.stop()

    asyncio.run(scenario())


def test_a_worker_that_ends_is_lost_with_what_it_said_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        worker = a_worker(tmp_path, "fail")
        await worker.start()
        try:
            with pytest.raises(ContenderLost, match="it ended: out of ideas"):
                await worker.run(JOB)
        finally:
            await worker.stop()

    asyncio.run(scenario())


def test_a_program_that_is_not_there_is_lost(tmp_path: Path) -> None:
    worker = Worker("w", Program([str(tmp_path / "none")], tmp_path / "w.log"), Letters())
    with pytest.raises(ContenderLost, match="none"):
        asyncio.run(worker.start())


@pytest.mark.parametrize(("words", "tokens"), [((), 12), (("usage",), 24)])
def test_a_servers_tokens_are_those_it_tells_or_the_parts_it_sends(
    tmp_path: Path, words: tuple[str, ...], tokens: int
) -> None:
    async def scenario() -> None:
        server = a_server(tmp_path, *words)
        await server.start()
        try:
            sample = await server.run(JOB)
            assert sample.tokens == tokens
            assert 0 < sample.first < sample.wall
            assert len(sample.gaps) == 12 - 3
            assert server.peak_bytes > 1 << 20
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_the_cpu_seconds_of_a_server_include_its_children_and_all_of_them_end_with_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = a_server(tmp_path, rests=False)
        await server.start()
        members = list(processes.family(server.program.pid))
        try:
            assert len(members) == 2
            async with asyncio.timeout(90):
                while processes.cpu_seconds(server.program.pid) < 0.3:
                    await asyncio.sleep(0.02)
        finally:
            await server.stop()
        await gone(members)

    asyncio.run(scenario())


def test_a_server_that_rests_is_stopped_with_its_children_and_ends_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = a_server(tmp_path)
        await server.start()
        members = list(processes.family(server.program.pid))
        try:
            await resting(members)
        finally:
            await server.stop()
        await gone(members)

    asyncio.run(scenario())


def test_a_server_that_refuses_is_lost_with_its_answer(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = a_server(tmp_path, "fail")
        await server.start()
        try:
            with pytest.raises(ContenderLost, match="status 500: no room left"):
                await server.run(JOB)
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_a_server_that_ends_at_its_start_is_lost_with_what_it_said(tmp_path: Path) -> None:
    program = Program([sys.executable, "-c", "import sys; sys.exit('no such model')"], tmp_path / "s.log")
    server = Server("s", program, f"http://127.0.0.1:{free_port()}", "/health", lambda *_: {})

    async def scenario() -> None:
        try:
            with pytest.raises(ContenderLost, match="it ended with status 1: no such model"):
                await server.start()
        finally:
            await server.stop()

    asyncio.run(scenario())
