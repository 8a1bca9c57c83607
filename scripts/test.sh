#!/usr/bin/env bash
# What CI runs: every check and every test. The tests go in lanes beside each other, each lane a pytest of its own with
# its output in build/lanes; the real node's tests come after them and alone (where there can be no such node, they are
# skipped with the reason); the end-to-end tests come last and alone, and their pytest reports what all lanes found
# (tests/support/lanes.py): its closing line, the last thing printed, counts every test. Up to three tests with servers or
# models, or on the node, that failed are tried once more, alone; those that pass then are reported as unsteady, with what
# failed first. A failed check does not hide the tests' result; the exit status is 0 only if all of it held.
#
# Environment: VENV (default .venv), REAL_NODE (0 leaves the real node's tests out). Extra arguments go to every pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${VENV:-.venv}/bin
case ${REAL_NODE:=1} in
  0 | 1) ;;
  *)
    printf 'REAL_NODE is "%s": set it to 0 to leave the tests on a real node out, or to 1\n' "$REAL_NODE" >&2
    exit 2
    ;;
esac
logs=build/lanes
rm -rf "$logs"
mkdir -p "$logs"
options=("$@")
failed=() # checks
joins=()  # the lanes' reports
declare -A pids=() statuses=()

# shellcheck disable=SC2329 # trap calls it
stop() {
  ((${#pids[@]})) || return 0
  kill -INT "${pids[@]}" 2>/dev/null || true
  wait
}
trap stop EXIT

# In the background, with a log. env: bash starts such commands deaf to Ctrl-C, and pytest must hear it to clean up.
start() { # NAME COMMAND...
  local name=$1
  shift
  env --default-signal=INT "$@" >"$logs/$name.log" 2>&1 &
  pids[$name]=$!
}

lane() { # NAME NICENESS PATH...
  local name=$1 niceness=$2
  shift 2
  joins+=("--join=$logs/$name.reports")
  start "$name" nice -n "$niceness" "$bin/python" -m pytest -p tests.support.lanes \
    --lane="$logs/$name.reports" "$@" ${options[@]+"${options[@]}"}
}

check() { # TARGET
  local began=$SECONDS
  if make "$1"; then
    printf -- '-- %s: ok (%d s)\n' "$1" $((SECONDS - began))
  else
    printf -- '-- %s: FAILED\n' "$1"
    failed+=("$1")
  fi
}

# Wait for background commands; say how each ended, and now and then what those are at that go on.
await() { # NAME...
  local name running=1 seconds=0
  while ((running)); do
    running=0
    for name in "$@"; do
      [[ -v pids[$name] ]] || continue
      if kill -0 "${pids[$name]}" 2>/dev/null; then
        running=1
        ((seconds % 30 != 29)) || printf '   %s: %s\n' "$name" "$(last_line "$name")"
        continue
      fi
      statuses[$name]=0
      wait "${pids[$name]}" || statuses[$name]=$?
      unset "pids[$name]"
      [[ ${statuses[$name]} == [05] ]] || cat "$logs/$name.log" # 5: -k chose none of its tests
      printf -- '-- %s: %s\n' "$name" "$(last_line "$name")"
    done
    ((++seconds))
    ((!running)) || sleep 1
  done
}

last_line() { # NAME
  tail -n 1 "$logs/$1.log" | tr -d = | cut -c1-110
}

# The control plane's binaries and the models are made once per machine, in a cache; what needs neither of them begins
# beside that. Tests with servers wait a lot, and nobody should wait for them to get the CPU: the others are nice.
start artifacts nice -n 10 make artifacts
((!REAL_NODE)) || start node-artifacts nice -n 15 make node-artifacts
lane quick 10 tests/unit tests/property tests/scenarios --ignore=tests/unit/runtime_engine --ignore=tests/unit/tuning
for target in lint types contracts spelling generated; do check "$target"; done

last=(tests/e2e)
await artifacts
if ((statuses[artifacts] == 0)); then
  lane operator 0 tests/component/operator
  # Whatever maps torch's libraries is in one lane: the memory a runtime takes is found smaller while others share them.
  lane models 5 tests/unit/runtime_engine tests/unit/tuning tests/component/runtime_engine tests/component/runtime_front
  # The contract of tests/node is held against the process kubelet here, and against the real one on the node.
  lane servers 0 tests/component tests/node/contract -m "not node" --ignore=tests/component/operator \
    --ignore-glob='tests/component/runtime_*'
else
  echo "-- artifacts: FAILED; component and end-to-end tests are left out"
  failed+=(artifacts)
  last+=(--deselect=tests/e2e)
fi
await quick servers models operator node-artifacts
if [[ ${statuses[node-artifacts]:-0} != 0 ]]; then
  echo "-- node-artifacts: FAILED; the real node's tests are left out"
  failed+=(node-artifacts)
elif ((REAL_NODE && statuses[artifacts] == 0)); then
  printf -- '-- %d s so far; now the tests on a real node, alone\n' "$SECONDS"
  lane node 0 tests/node -m node
  await node
fi
mapfile -t unsure < <("$bin/python" -m tests.support.lanes "$logs"/{operator,models,servers,node}.reports)
if [[ -n ${unsure[0]:-} ]] && ((${#unsure[@]} <= 3)); then
  printf -- '-- failed, now again and alone: %s\n' "${unsure[*]}"
  "$bin/python" -m pytest -p tests.support.lanes --lane="$logs/again.reports" "${unsure[@]}" || true
  joins+=("--again=$logs/again.reports")
fi
if ((${#failed[@]})); then
  printf -- '-- FAILED beside the tests: %s\n' "${failed[*]}"
fi
printf -- '-- %d s so far; now the end-to-end tests, alone, and then the result of all\n' "$SECONDS"

status=0
"$bin/python" -m pytest -p tests.support.lanes "${joins[@]}" --durations=25 --durations-min=5 "${last[@]}" \
  ${options[@]+"${options[@]}"} || status=$?
((${#failed[@]})) && exit 1
exit "$status"
