#!/usr/bin/env bash
# System packages, only where missing: tools/system.sh servers | venv PYTHON
#
# Debian and Ubuntu: apt-get, as root or through sudo. Elsewhere it prints what to install and ends with 1.
# Tests start their own private servers, so no service that comes with a package is left running or enabled.
set -euo pipefail

# Debian keeps server programs off the PATH: /usr/sbin, and PostgreSQL in a folder of its version.
has() {
  case $1 in
    postgresql) PATH=$PATH:$(printf '%s:' /usr/lib/postgresql/*/bin) command -v initdb >/dev/null ;;
    systemd) [ -e /usr/lib/systemd/systemd ] || [ "$(uname)" != Linux ] ;;
    libfaketime) compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' >/dev/null || [ "$(uname)" != Linux ] ;;
    nodejs) command -v node >/dev/null ;;
    redis-server) command -v redis-server >/dev/null || command -v valkey-server >/dev/null ;;
    *) PATH=$PATH:/usr/sbin:/usr/local/sbin command -v "$1" >/dev/null ;;
  esac
}

missing=()
case ${1:-} in
  servers)
    for package in redis-server rabbitmq-server postgresql pgbouncer chromium prometheus docker-compose systemd nodejs npm libfaketime; do
      has "$package" || missing+=("$package")
    done
    ;;
  venv)
    # Debian's python3.N is without ensurepip until this package brings it.
    missing+=("python$("$2" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv")
    ;;
  *) echo "usage: tools/system.sh servers | venv PYTHON" >&2; exit 2 ;;
esac
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
if ! command -v apt-get >/dev/null || { [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; }; then
  echo "setup: please install these, by the names that your system has for them, and run this again: ${missing[*]}" >&2
  exit 1
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
ours=""
finish() {
  [ -z "$ours" ] || "${as_root[@]}" rm -f "$policy"
  rm -f "$log"
}
trap finish EXIT

# Debian starts a service as it installs it, unless this file says no. If there is one already, it is not ours to change.
if [ ! -e "$policy" ]; then
  ours=yes
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi

echo "setup: ${SECONDS}s  system packages: ${missing[*]}"
get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
if ! { "${get[@]}" update && "${get[@]}" install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  echo "setup: apt-get could not install ${missing[*]}; its last lines:" >&2
  tail -n 25 "$log" >&2
  exit 1
fi

# The policy keeps them from starting now; this keeps them from starting with the machine.
if [ -d /run/systemd/system ]; then
  for package in "${missing[@]}"; do
    "${as_root[@]}" systemctl disable --now "$package" >/dev/null 2>&1 || true
  done
fi
echo "setup: ${SECONDS}s  installed; no service was started or enabled"
