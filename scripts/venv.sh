#!/usr/bin/env bash
# Make .venv hold exactly what the locks name. Quick when nothing changed; safe to run again at any time.
#
# Environment: PYTHON (interpreter to use), VENV (default .venv).
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
stamp=$venv/.llmos-locks
locks=(requirements/dev.lock requirements/models.lock)

usable() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14; do
    if command -v "$candidate" >/dev/null && usable "$candidate"; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  echo "LLMOS needs Python 3.11 to 3.14 on Linux; found: $(python3 --version 2>&1 || echo none)." >&2
  echo "Install it (Debian, Ubuntu: apt install python3 python3-venv) or set PYTHON=/path/to/python3." >&2
  return 1
}

wanted=$(cat "${locks[@]}" requirements/bootstrap.lock pyproject.toml scripts/venv.sh | cksum)
if [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
  exit 0
fi

python=$(find_python)
uv=build/bootstrap/bin/uv
if ! [[ -x $uv ]] || ! grep -q "^uv==$("$uv" --version | cut -d' ' -f2) " requirements/bootstrap.lock; then
  echo "venv: bootstrapping uv with $("$python" --version)"
  if ! "$python" -m venv --clear build/bootstrap; then
    echo "Python's venv module is incomplete. Debian, Ubuntu: apt install python3-venv." >&2
    exit 1
  fi
  build/bootstrap/bin/python -m pip install --quiet --disable-pip-version-check \
    --require-hashes --requirement requirements/bootstrap.lock
fi
if ! [[ -x $venv/bin/python ]] || ! usable "$venv/bin/python"; then
  echo "venv: creating $venv"
  "$uv" venv --quiet --clear --python "$python" "$venv"
fi
echo "venv: installing $(cat "${locks[@]}" | grep -c "==") locked packages (the first time about 3 GB)"
export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
"$uv" pip sync --python "$venv/bin/python" --require-hashes "${locks[@]}"
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
printf '%s' "$wanted" >"$stamp"
echo "venv: ready"
