#!/usr/bin/env bash
# Makes .cache/swift/venv: OpenStack Swift, the S3 server of the contract tests that checks signatures and checksums.
# It is not a dependency of Imprint and needs an older setuptools, so it has its own environment. A second run does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=("setuptools<81" "swift==2.38.3")
home=.cache/swift
mkdir -p "$home"
exec 9>"$home/lock"
.venv/bin/python -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
stamp="$PWD ${packages[*]} $(.venv/bin/python --version)"
if [ "$(cat "$home/installed" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
printf 'setup: %s\n' "${packages[1]} for the tests of the object store"
rm -rf "$home/venv" "$home/installed"
if ! { .venv/bin/python -m venv "$home/venv" &&
  "$home/venv/bin/python" -m pip install --quiet --no-input --disable-pip-version-check "${packages[@]}"; } \
  >"$home/log" 2>&1 9>&-; then
  echo "setup: failed; the last lines of $home/log:" >&2
  tail -n 25 "$home/log" >&2
  exit 1
fi
echo "$stamp" >"$home/installed"
