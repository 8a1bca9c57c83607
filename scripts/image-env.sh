#!/bin/sh
# Fill an image's environment: the locked wheels of one process by hash, without tests, compiled but for what is rarely
# imported, and proved to import what the process imports.
#
# Usage: image-env.sh PROCESS LOCK ENVIRONMENT APP      (run by the Dockerfile; works in any virtual environment)
# With INSTALLED set the wheels are there already: scripts/realnode/images.py takes them from a cache, by the same lock.
set -eu
process=$1 lock=$2 environment=$3 app=$4
python="$environment/bin/python"

[ -n "${INSTALLED:-}" ] ||
  PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip --python "$python" install --quiet \
    --require-hashes --only-binary :all: --no-deps --no-compile -r "$lock"
find "$environment" -type d -name tests -prune -exec rm -rf {} +

# Bytecode is written here, because the file system is read-only where the image runs. The Kubernetes client is 1,400
# generated modules, of which a handful is ever loaded: those are compiled by importing them below. Wheels hold files in the
# words of newer Pythons (torch has), which do not compile and are not imported: that is no failure.
"$python" -m compileall -qq -x 'kubernetes/(client|aio)/' "$environment" || true
"$python" -m compileall -q "$app"
env -u PYTHONDONTWRITEBYTECODE PYTHONPATH="$app" "$python" -c '
import importlib, sys
from llmos_operator.__main__ import PROCESSES
importlib.import_module(PROCESSES[sys.argv[1]][0])
' "$process"
