"""`/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, as vLLM names them; the control API shares their words.

https://docs.vllm.ai/en/latest/features/lora.html#dynamically-serving-lora-adapters

Off unless folders are allowed. A path that leaves them gets one and the same answer whether it exists or not, and nothing but a
valid adapter of the loaded model is ever read from them. Whoever calls must show an API key or the control token, also where
answers need no key.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from starlette.requests import Request  # noqa: TC002 - the framework reads annotations when it runs
from starlette.responses import PlainTextResponse, Response

from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.exchange import read_body
from llmos_operator.runtime.protocol import Body

if TYPE_CHECKING:
    from llmos_operator.runtime.host import ModelHost

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
GUARDED = frozenset({LOAD, UNLOAD})

Name = Annotated[
    str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
]


class LoadLora(Body):
    """Body of `/v1/load_lora_adapter`."""

    lora_name: Name
    lora_path: str = Field(min_length=1, max_length=4096, description="Absolute folder below an allowed one.")


class UnloadLora(Body):
    """Body of `/v1/unload_lora_adapter`."""

    lora_name: Name


class AdaptersApi:
    """Handlers of the two routes."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def load(self, request: Request) -> Response:
        """Serve an adapter from a local folder."""
        folders = self._need_folders()
        body = await read_body(request, LoadLora)
        await self._host.load_adapter(body.lora_name, body.lora_path, folders=folders, param="lora_path")
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        """Stop serving an adapter that came by `load`; the answer comes when its last request has ended."""
        self._need_folders()
        body = await read_body(request, UnloadLora)
        if body.lora_name in {source.name for source in self._host.settings.adapters}:
            text = f"The adapter '{body.lora_name}' belongs to the workload's spec.adapters: remove it there."
            raise ApiError(HTTPStatus.FORBIDDEN, "adapter_protected", text, param="lora_name")
        await self._host.unload_adapter(body.lora_name, param="lora_name")
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    def _need_folders(self) -> tuple[str, ...]:
        folders = self._host.settings.adapter_dirs
        if not folders:
            text = "Adapters are not loaded by clients here: no folders are allowed (LLMOS_ADAPTER_DIRS)."
            raise ApiError(HTTPStatus.FORBIDDEN, "adapters_not_allowed", text)
        return folders
