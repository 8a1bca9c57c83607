"""A stand-in for `vllm serve` as a program: its documented options and routes, and answers that repeat the prompt.

    python -m tests.support.vllm_double serve MODEL [options]

Like the original it refuses options and values it does not know, listens before it is up, has no sleep and no adapters
unless it was started for them, and a socket that is in its way ends it. Prompts of one word make trouble: `crash` ends the
process in the middle of an answer, `hang` stops it from answering anybody, `slow` waits between tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from aiohttp import web

TOKENS = 8
FORMATS = ("fp8", "bitsandbytes", "gptq", "awq")
METRICS = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython"} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="%(name)s"} %(running)d.0
vllm:num_requests_waiting{engine="0",model_name="%(name)s"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="%(name)s"} 0.25
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="%(name)s"} %(prompt)d.0
vllm:generation_tokens_total{engine="0",model_name="%(name)s"} %(generated)d.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.25",model_name="%(name)s"} %(finished)d.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="%(name)s"} %(finished)d.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="%(name)s"} 1.25
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="%(name)s"} %(finished)d.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="%(name)s"} 0.0
"""


def options(argv: list[str]) -> argparse.Namespace:
    """Return the options, or end as argparse does."""
    parser = argparse.ArgumentParser(prog="vllm")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", nargs="?")
    for name in ("--uds", "--host", "--served-model-name", "--chat-template"):
        parser.add_argument(name)
    for name in (
        "--port",
        "--max-model-len",
        "--max-num-seqs",
        "--max-num-batched-tokens",
        "--kv-cache-memory-bytes",
    ):
        parser.add_argument(name, type=int)
    for name in ("--tensor-parallel-size", "--pipeline-parallel-size", "--max-loras", "--max-cpu-loras"):
        parser.add_argument(name, type=int)
    parser.add_argument("--gpu-memory-utilization", type=float)
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"])
    parser.add_argument("--quantization", choices=FORMATS)
    parser.add_argument("--kv-cache-dtype", choices=["auto", "bfloat16", "fp8"])
    for name in ("--enable-lora", "--enable-sleep-mode", "--disable-uvicorn-access-log", "--enforce-eager"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args(argv)


class Double:
    """The server."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.name = given.served_model_name or given.model
        self.running = self.finished = self.prompt = self.generated = 0
        self.adapters: dict[str, str] = {}
        self.asleep: set[str] = set()  # tags that sleep
        self.calls: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/double/calls", self.told)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/tokenize", self.tokenize)
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            app.router.add_post("/sleep", self.sleep)
            app.router.add_get("/is_sleeping", self.is_sleeping)
            app.router.add_post("/wake_up", self.wake_up)
            app.router.add_post("/collective_rpc", self.rpc)
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
            app.router.add_post("/v1/load_lora_adapter", self.load)
            app.router.add_post("/v1/unload_lora_adapter", self.unload)
        return app

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def told(self, _: web.Request) -> web.Response:
        """What the double saw: its options, its environment, the orders it got."""
        seen = {
            "options": vars(self.given),
            "environment": dict(os.environ),
            "calls": self.calls,
            "pid": os.getpid(),
        }
        return web.json_response(seen)

    async def metrics(self, _: web.Request) -> web.Response:
        figures = {"running": self.running, "prompt": self.prompt, "generated": self.generated}
        return web.Response(text=METRICS % {**figures, "finished": self.finished, "name": self.name})

    async def models(self, _: web.Request) -> web.Response:
        base = {"id": self.name, "object": "model", "max_model_len": self.given.max_model_len or 2048}
        return web.json_response({"object": "list", "data": [base, *({"id": one} for one in self.adapters)]})

    async def tokenize(self, request: web.Request) -> web.Response:
        words = str((await request.json()).get("prompt", "")).split()
        return web.json_response({"count": len(words), "tokens": list(range(len(words)))})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, str(body.get("prompt", "")), "text")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        return await self._answer(request, body, str(body["messages"][-1]["content"]), "delta")

    async def _answer(self, request: web.Request, body: Any, prompt: str, field: str) -> web.StreamResponse:
        if body.get("model") not in {self.name, *self.adapters}:
            return _error(404, f"The model `{body.get('model')}` does not exist.")
        if self.asleep or request.headers.get("Authorization"):
            return _error(500, "asleep, or a key was passed on")
        if prompt == "hang":
            time.sleep(3600)  # noqa: ASYNC251 - that is the trouble it makes
        self.running += 1
        self.prompt += len(prompt.split())
        try:
            if body.get("stream"):
                return await self._stream(request, prompt, field)
            await self._pace(prompt)
            text = " ".join([prompt] * 2)
            self.finished, self.generated = self.finished + 1, self.generated + TOKENS
            message = (
                {"message": {"role": "assistant", "content": text}} if field == "delta" else {"text": text}
            )
            return web.json_response({"model": body["model"], "choices": [{"index": 0, **message}]})
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, prompt: str, field: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await answer.prepare(request)
        for number in range(TOKENS):
            piece: Any = f"{prompt}{number} " if field == "text" else {"content": f"{prompt}{number} "}
            await answer.write(f"data: {json.dumps({'choices': [{'index': 0, field: piece}]})}\n\n".encode())
            if number == TOKENS // 2 and prompt == "crash":
                await asyncio.sleep(0.05)
                os._exit(17)
            await self._pace(prompt)
            self.generated += 1
        await answer.write(b"data: [DONE]\n\n")
        self.finished += 1
        return answer

    async def _pace(self, prompt: str) -> None:
        await asyncio.sleep(0.2 if prompt == "slow" else 0)

    async def sleep(self, request: web.Request) -> web.Response:
        if not self.given.enable_sleep_mode:
            return _error(500, "Sleep mode is not enabled")
        self.calls.append(f"sleep {request.query.get('level', '1')}")
        self.asleep = {"weights", "kv_cache"}
        return web.json_response({"status": "sleeping"})

    async def is_sleeping(self, _: web.Request) -> web.Response:
        return web.json_response({"is_sleeping": bool(self.asleep)})

    async def wake_up(self, request: web.Request) -> web.Response:
        tags = set(request.query.getall("tags", ["weights", "kv_cache"]))
        self.calls.append(f"wake_up {' '.join(sorted(tags))}")
        self.asleep -= tags
        return web.json_response({"status": "awake"})

    async def rpc(self, request: web.Request) -> web.Response:
        self.calls.append(str((await request.json())["method"]))
        return web.json_response({"results": [None]})

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        config = Path(body["lora_path"]) / "adapter_config.json"
        if not self.given.enable_lora or body["lora_name"] in self.adapters or not config.is_file():
            return _error(400, f"The lora adapter '{body['lora_name']}' cannot be loaded.")
        self.adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        self.adapters.pop((await request.json())["lora_name"])
        return web.Response(text="Success")


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return web.json_response({"error": error}, status=status)


def main() -> None:
    """Serve until SIGTERM."""
    given = options(sys.argv[1:])
    if not (Path(given.model or "") / "config.json").is_file():
        sys.exit(f"{given.model} is no model")
    if given.uds and Path(given.uds).exists():
        sys.exit(f"{given.uds}: address already in use")
    app = Double(given).app()
    if given.uds:
        web.run_app(app, path=given.uds, print=None, handle_signals=True)
    else:
        web.run_app(app, host=given.host, port=given.port, print=None, handle_signals=True)


if __name__ == "__main__":
    main()
