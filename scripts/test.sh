#!/usr/bin/env bash
# Checks everything: formatting, lint, types, tests. Arguments go to pytest: bash scripts/test.sh -k beam -n 0
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup dev
# small tests: several threads per operation only stand in each other's way
export OMP_NUM_THREADS=1
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/mypy
.venv/bin/pytest -n 2 --dist worksteal "$@"
