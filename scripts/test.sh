#!/usr/bin/env bash
# What CI runs: every check, then every test, cheapest first. A failed check does not hide the tests' result; the exit
# status is 0 only if all of it held. pytest's summary is the last thing printed.
#
# Environment: VENV (default .venv). Extra arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${VENV:-.venv}/bin
logs=build/logs
mkdir -p "$logs"
failed=()

# The control plane's binaries and the models are made once per machine, in a cache; where that is still to do it
# runs beside the checks.
make artifacts >"$logs/artifacts.log" 2>&1 &
artifacts=$!
trap 'kill "$artifacts" 2>/dev/null || true' EXIT

check() {
  local name=$1 started=$SECONDS
  if make "$name"; then
    printf -- '-- %s: ok (%d s)\n' "$name" $((SECONDS - started))
  else
    printf -- '-- %s: FAILED\n' "$name"
    failed+=("$name")
  fi
}
for name in lint types contracts spelling generated; do check "$name"; done

if kill -0 "$artifacts" 2>/dev/null; then
  echo "-- waiting for control-plane binaries and models (log: $logs/artifacts.log)"
fi
while kill -0 "$artifacts" 2>/dev/null; do
  printf '   %s\n' "$(tail -n 1 "$logs/artifacts.log" | cut -c1-120)"
  for _ in {1..20}; do kill -0 "$artifacts" 2>/dev/null || break; sleep 1; done
done
suites=(tests/unit tests/property tests/scenarios tests/component tests/e2e)
if ! wait "$artifacts"; then
  tail -n 20 "$logs/artifacts.log"
  echo "-- artifacts: FAILED; component and end-to-end tests are left out"
  failed+=(artifacts)
  suites=(tests/unit tests/property tests/scenarios)
fi
if ((${#failed[@]})); then
  printf -- '-- FAILED before the tests: %s\n' "${failed[*]}"
fi

status=0
"$bin/python" -m pytest --durations=25 --durations-min=5 "${suites[@]}" "$@" || status=$?
((${#failed[@]})) && exit 1
exit "$status"
