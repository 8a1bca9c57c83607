#!/usr/bin/env bash
# Every linter over every tracked file it knows. All run even when one fails, so that one pass shows everything.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

bin=${VENV:-.venv}/bin
status=0
run() {
  if ! "$@"; then
    printf 'lint: FAILED: %s\n' "$(basename "$1") ${2:-}" >&2
    status=1
  fi
}

run "$bin/ruff" check --quiet --output-format concise .
run "$bin/ruff" format --check --quiet --output-format concise .

mapfile -t shells < <(git ls-files '*.sh' .ci/run)
run "$bin/shellcheck" "${shells[@]}"

# Chart templates are Go templates, not YAML; they are linted as rendered.
mapfile -t yamls < <(git ls-files '*.yaml' '*.yml' | grep -v '^helm/.*/templates/')
((${#yamls[@]})) && run "$bin/yamllint" --strict "${yamls[@]}"

mapfile -t dockerfiles < <(git ls-files 'Dockerfile*')
((${#dockerfiles[@]})) && run "$bin/hadolint" "${dockerfiles[@]}"

exit "$status"
