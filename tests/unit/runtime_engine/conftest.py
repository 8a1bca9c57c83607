"""A driver that runs a model through scheduler and backend in this process."""

import pytest

from llmos_operator.runtime.batching import Batcher, BatchLimits
from llmos_operator.runtime.ipc.messages import SamplingParams, Submit
from llmos_operator.runtime.kvcache import KvCache


class Driver:
    """One model at one format; `run` answers prompts together, greedy unless told otherwise."""

    def __init__(self, folder, fmt="fp32", *, slots=8, slot_tokens=256, tmp=None):
        import torch  # noqa: PLC0415

        from llmos_operator.runtime.backends import build  # noqa: PLC0415
        from llmos_operator.runtime.backends.kvstore import KvGeometry  # noqa: PLC0415
        from llmos_operator.runtime.formats.checkpoint import open_checkpoint  # noqa: PLC0415
        from llmos_operator.runtime.formats.config import read_config  # noqa: PLC0415
        from llmos_operator.runtime.formats.quantize import convert  # noqa: PLC0415
        from llmos_operator.runtime.formats.safetensors_file import read_header  # noqa: PLC0415

        torch.set_num_threads(1)
        self.empty = build.prepare(read_config(folder), open_checkpoint(folder))
        self.empty.fuse(fmt)
        entries = None
        if fmt in build.CONVERTED:
            path = tmp / f"{fmt}.safetensors"
            convert(self.empty.units(fmt), self.empty.entries, path, {}, lambda _: None)
            entries = {tensor.name: (path, tensor) for tensor in read_header(path).tensors}
        device = torch.device("cpu")
        self.built = build.load_weights(self.empty, fmt, entries, device, lambda _: None)
        shape = self.empty.shape
        if not shape.generative:
            build.attach_encoder(self.built, self.empty)
            return
        dtype = torch.float32 if fmt == "fp32" else torch.bfloat16
        geometry = KvGeometry(shape.layers, shape.kv_heads, shape.head_dim, slots, slot_tokens, dtype, device)
        build.attach_causal(self.built, self.empty, geometry)
        self.slots, self.slot_tokens = slots, slot_tokens

    def run(self, prompts, count=20, *, blocks=400, eos=(), sampling=None, adapters=(), watch=None, **limits):
        """Return the generated tokens of each prompt and the scheduler that made them.

        ``adapters`` are the names of the prompts' adapters; ``watch`` is called before each step.
        """
        cache = KvCache(blocks=blocks, slots=self.slots, slot_tokens=self.slot_tokens)
        batcher = Batcher(BatchLimits(max_tokens=self.slot_tokens, **limits), cache, eos)
        outputs = {str(i): [] for i in range(len(prompts))}
        for i, prompt in enumerate(prompts):
            params = sampling or SamplingParams(max_tokens=count, temperature=0, seed=0)
            name = adapters[i] if adapters else ""
            submit = Submit(str(i), tuple(prompt), params, adapter=name)
            assert not batcher.add(submit, 0.0, salt=name.encode())
        while batcher.running or batcher.waiting:
            if watch is not None:
                watch()
            plan = batcher.plan(0.0)
            result = self.built.causal.execute(plan, tuple(eos))
            for emitted in batcher.commit(plan, result.tokens, 0.0):
                outputs[emitted.sequence.submit.request_id] += emitted.tokens
        cache.check()
        return list(outputs.values()), batcher


@pytest.fixture
def driver():
    """Give the Driver class."""
    return Driver
