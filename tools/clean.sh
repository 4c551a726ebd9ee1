#!/usr/bin/env bash
# Removes what setup and tools created. Keeps .imprint/, which contains jobs, credits and LoRA files.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf examples/typescript/{node_modules,dist,src/api.d.ts}
rm -rf .venv .cache build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
find . -name .git -prune -o -name .imprint -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
