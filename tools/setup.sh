#!/usr/bin/env bash
# Makes .venv with everything that Imprint needs: tools/setup.sh [demo|test]
#
# `test` also installs the servers and Node.js that tests start (tools/system.sh), and the TypeScript example's packages.
# It may run again and in several processes at once: they wait for a lock, and a run that finds the stamp of the same pins
# does nothing.
# PYTHON=/path/to/python chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:-demo}
case $purpose in demo | test) ;; *) echo "usage: tools/setup.sh [demo|test]" >&2; exit 2 ;; esac
mkdir -p .cache
log=.cache/setup.log

say() { printf 'setup: %4ds  %s\n' "$SECONDS" "$*"; }

# Runs one step with its output in the log. If it fails, prints the end of the log.
step() {
  local what=$1; shift
  say "$what"
  if ! "$@" >>"$log" 2>&1; then
    say "failed: $what; the last lines of $log:" >&2
    tail -n 25 "$log" >&2
    exit 1
  fi
}

# The lock belongs to the open file, so a Python child can take it where flock(1) is missing, as on macOS.
exec 9>.cache/setup.lock
if command -v flock >/dev/null; then flock 9; else python3 -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'; fi

if [ "$purpose" = test ]; then
  tools/system.sh servers 9>&-
  # The packages of the TypeScript example, again when its lock changes.
  example=examples/typescript
  if ! cmp -s $example/package-lock.json $example/node_modules/installed.json; then
    step "the TypeScript example's packages" npm ci --prefix $example
    cp $example/package-lock.json $example/node_modules/installed.json
  fi
fi

# ---- the stamp: every pin, and the path, because a virtual environment cannot be moved ----

torch=$(sed -nE 's/^ *"(torch==[^"]+)",?.*/\1/p' pyproject.toml)
[ -n "$torch" ] || { echo "setup: pyproject.toml has no exact pin of torch" >&2; exit 1; }
digest() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }
stamp="$PWD $torch $(cat pyproject.toml requirements.lock | digest | cut -c1-64)"
if [ -x .venv/bin/python ] && [ "$(cat .venv/imprint.stamp 2>/dev/null)" = "$stamp" ]; then exit 0; fi

# ---- an interpreter ----

# 3.11 first: the lock, mypy and the tests use this version.
fits() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python=""
candidates=(python3.11 python3 python3.12 python3.13)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for candidate in "${candidates[@]}"; do
  if fits "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || { echo "setup: Imprint needs Python 3.11 or newer; set PYTHON=/path/to/it" >&2; exit 1; }
if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then tools/system.sh venv "$python" 9>&-; fi

# ---- the environment ----

: >"$log"
# pip must not ask questions. Children run without the lock, which a daemon left behind would hold for ever.
pip() { .venv/bin/python -m pip --no-input --disable-pip-version-check "$@" 9>&-; }
if ! grep -qsF "$PWD/.venv" .venv/bin/activate || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  rm -rf .venv
  step "virtual environment with $("$python" --version)" "$python" -m venv .venv
fi
rm -f .venv/imprint.stamp

# torch is installed first, by its exact pin, in the build for this machine (CPU, CUDA), so it is not in the lock. Its
# dependencies get the versions of the lock, so that nothing is installed twice.
sed -nE 's/^([A-Za-z0-9._-]+==[^\\]+[^\\ ]).*/\1/p' requirements.lock >.cache/constraints.txt
step "$torch" pip install "$torch" -c .cache/constraints.txt
step "the locked tree, $(grep -c '==' requirements.lock) packages" pip install --no-deps --require-hashes -r requirements.lock
step "Imprint itself, editable" pip install --no-deps --no-build-isolation -e .
echo "$stamp" >.venv/imprint.stamp
say "ready"
