"""Models from a Hugging Face hub or a mirror of one (HF_ENDPOINT), through huggingface_hub's cache.

The library does resume, etags, locks between processes and offline mode; this module chooses the files, reports bytes
and translates errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.remote import WANTED_SUFFIXES
from llmos_operator.runtime.formats.checkpoint import PICKLE_NAMES
from llmos_operator.runtime.loader.sources import Resolved, begin_download

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages

_RETRY_SECONDS = 5.0


def download(load: Load, stages: Stages, files: Sequence[str] = ()) -> Resolved:
    """Return the snapshot folder of ``hf://org/name`` at ``load.revision``, with ``files`` or all that a model needs."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - only this source needs it
    from huggingface_hub.errors import (  # noqa: PLC0415
        DryRunError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    repository = load.uri.removeprefix("hf://").strip("/")
    options: dict[str, Any] = {
        "repo_id": repository,
        "revision": load.revision or "main",
        "cache_dir": str(Path(load.cache_dir) / "hub") if load.cache_dir else None,
        "token": load.token or False,
        "endpoint": load.hf_endpoint or None,
        "allow_patterns": list(files) or [f"*{suffix}" for suffix in WANTED_SUFFIXES],
        "ignore_patterns": ["onnx/*", "openvino/*", "original/*", "*.onnx.json"],
    }
    total = 0
    begin_download(stages, 0)
    try:
        try:
            planned = snapshot_download(**options, tqdm_class=_bar(stages), dry_run=True)
            total = sum(file.file_size or 0 for file in planned if file.will_download)
            begin_download(stages, total)
            folder = snapshot_download(**options, tqdm_class=_bar(stages), max_workers=4)
        except (DryRunError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
            answered = _refusal(error, HfHubHTTPError)
            if answered is not None:
                raise answered from error
            folder = snapshot_download(**options, local_files_only=True)  # what the cache has will do
    except LocalEntryNotFoundError as error:
        text = f"the hub cannot be reached and the cache has no {repository}: {_first_line(error)}"
        raise Retryable(text, after=_RETRY_SECONDS) from error
    except HfHubHTTPError as error:
        raise _translated(error, repository, load) from error
    except ValueError as error:
        raise Permanent(f"{load.uri}: {_first_line(error)}", reason="ModelNotFound") from error
    except OSError as error:
        raise Retryable(
            f"downloading {repository} failed: {_first_line(error)}", after=_RETRY_SECONDS
        ) from error
    path = Path(folder)
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.gguf")):
        _explain_no_weights(repository, load)
    return Resolved(path, path.name, total)


def _refusal(error: BaseException, kind: type[Any]) -> Any:
    """Return the refusal among the causes of ``error``, if the hub did answer: not allowed, or not there."""
    seen: BaseException | None = error.__cause__
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(seen, kind) and status in (401, 403, 404):
            return seen
        seen = seen.__cause__
    return None


def _bar(stages: Stages) -> type[Any]:
    """Return a tqdm class that feeds bytes to ``stages`` and draws nothing.

    huggingface_hub keeps two bars of bytes, of what came over the network and of what was written; the second is
    counted, which begins with what an interrupted download left on the disk.
    """
    from huggingface_hub.utils import tqdm  # noqa: PLC0415 - only this source needs it

    class Bytes(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = options.get("name") == "huggingface_hub.snapshot_download"
            options["disable"] = True
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts and n:
                stages.advance(int(n))
            return None

    return Bytes


def _translated(error: Any, repository: str, load: Load) -> Permanent | Retryable:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(error).__name__ == "RepositoryNotFoundError" and not load.token:
        # The public hub answers 401 for a name it does not know, so that private names do not leak.
        text = f"the hub has no {repository}, or it is private and needs a token (spec.model.secretRef)"
        return Permanent(text, reason="ModelNotFound")
    if status in (401, 403):
        hint = (
            "the token does not permit it"
            if load.token
            else "a token is needed: name its Secret in spec.model.secretRef"
        )
        return Permanent(f"the hub denies {repository}: {hint}", reason="AccessDenied")
    if status == 404:  # noqa: PLR2004 - HTTP's own number
        return Permanent(
            f"the hub has no {repository} at revision {load.revision or 'main'}", reason="ModelNotFound"
        )
    return Retryable(
        f"the hub answered {status} for {repository}: {_first_line(error)}", after=_RETRY_SECONDS
    )


def _explain_no_weights(repository: str, load: Load) -> None:
    from huggingface_hub import HfApi  # noqa: PLC0415 - as above

    names = HfApi(endpoint=load.hf_endpoint or None, token=load.token or False).list_repo_files(
        repository, revision=load.revision or "main"
    )
    pickles = [name for name in names if name.endswith(PICKLE_NAMES)]
    if pickles:
        raise Permanent(
            f"{repository} has only {', '.join(pickles[:5])}: pickle-based formats can run code when opened; "
            "convert the model to safetensors",
            reason="UnsafeFormat",
        )
    raise Permanent(f"{repository} has no safetensors and no GGUF", reason="ModelNotFound")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
