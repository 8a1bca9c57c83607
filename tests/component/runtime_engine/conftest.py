"""One zygote for the whole run, engines as the tests ask for them."""

import asyncio

import pytest

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.runtime.ipc import EngineClient, Load, SamplingParams, Submit, Zygote
from tests.support.models import CHAT, packaged

SECONDS = 240  # for anything an engine is asked to do on a busy machine


class Bench:
    """An event loop that lives as long as the tests, a zygote in it, and the engine loaded last."""

    def __init__(self, cache):
        self.loop = asyncio.new_event_loop()
        self.cache = cache
        self.zygote = Zygote()
        self.client = EngineClient(zygote=self.zygote)
        self.loaded = None

    def run(self, coroutine):
        async def bounded():
            async with asyncio.timeout(SECONDS):
                return await coroutine

        return self.loop.run_until_complete(bounded())

    def load(self, uri, *, fresh=False, **options):
        """Load a model unless it is loaded already; return the engine's status, Ready or Failed."""
        options = {
            "cache_dir": str(self.cache),
            "allow_file": True,
            "threads": 1,
            "max_num_seqs": 8,
        } | options
        wanted = Load(str(uri), **options)
        if not fresh and wanted == self.loaded and self.client.status().state is RuntimeState.READY:
            return self.client.status()

        async def go():
            await self.client.load(wanted)
            return await self.client.wait(RuntimeState.READY, RuntimeState.FAILED)

        self.loaded = wanted
        return self.run(go())

    async def answer(self, request_id, prompt, **sampling):
        """Return the tokens and the last output of one request."""
        tokens = []
        params = SamplingParams(**{"max_tokens": 16, "temperature": 0.0} | sampling)
        async with self.client.generate(Submit(request_id, tuple(prompt), params)) as outputs:
            async for output in outputs:
                tokens += output.tokens
        return tokens, output

    async def stats_now(self):
        """Return statistics that the engine told after this was asked: the second to come."""
        for _ in range(2):
            seen = self.client.status().stats
            while self.client.status().stats is seen:
                await asyncio.sleep(0.05)
        return self.client.status().stats

    async def stats_until(self, holds):
        """Return the first statistics for which ``holds`` is true."""
        while not holds(self.client.status().stats):
            await asyncio.sleep(0.05)
        return self.client.status().stats


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """Give the bench; everything it started is ended afterwards."""
    made = Bench(tmp_path_factory.mktemp("cache"))
    yield made
    made.run(made.client.close())
    made.run(made.zygote.close())
    made.loop.close()


@pytest.fixture(scope="session")
def chat_model():
    """Give the folder of the packaged chat model."""
    return packaged(CHAT)


@pytest.fixture(scope="session")
def tokenizer(chat_model):
    """Give the chat model's tokenizer."""
    from tokenizers import Tokenizer  # noqa: PLC0415

    return Tokenizer.from_file(str(chat_model / "tokenizer.json"))
