#!/usr/bin/env bash
# The whole gate: everything that must be true of a change. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
    printf '\n== %s\n' "$*"
    "$@"
}

step ruff check .
step ruff format --check .
step mypy
step lint-imports
# Each worker takes neighbouring tests: those of a module share what is run once.
step pytest -n 2 --dist worksteal --durations=10 "$@"
