#!/usr/bin/env bash
# Boots systemd as process 1 of a machine of its own, made of namespaces: machine.sh FOLDER CGROUP PYTHON CHECKOUT
#
# Its root is this machine's file system seen through an overlay whose upper layer is a tmpfs in FOLDER, so whatever
# systemd, an installer or a service writes or deletes is gone with it. Nothing of this machine stays reachable but two
# folders, read-only: the checkout, and the Python that the tests run with, at /opt/python. Its network is a loopback.
set -euo pipefail
if [ "${5:-}" != inside ]; then
  echo $$ >"$2/cgroup.procs"
  exec unshare --mount --uts --ipc --net --cgroup --pid --fork --kill-child -- bash "$0" "$1" "$2" "$3" "$4" inside
fi
folder=$1 python=$3 checkout=$4
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$folder"
root=$folder/root
mkdir "$folder"/upper "$folder"/work "$root"
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"

# ---- what every machine has ----

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for place in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
for device in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do
  mknod -m 666 "$root/dev/${device% *}" c 1 "${device#* }"
done
mknod -m 666 "$root/dev/tty" c 5 0
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"

# ---- what the tests lend it ----

lend() { mkdir -p "$root$2"; mount --bind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
lend "$python" /opt/python
lend "$checkout" /opt/checkout

# Only systemd itself and what the test installs runs: no service, timer or set-up step of this machine.
units=$root/etc/systemd/system
rm -rf "$units"
mkdir -p "$units"
for unit in "$root"/usr/lib/systemd/system/*.target.wants/*; do
  case ${unit##*/} in systemd-journald*) ;; *) ln -sfn /dev/null "$units/${unit##*/}" ;; esac
done
printf '[Unit]\nRequires=basic.target\nAfter=basic.target\n' >"$units/machine.target"

cd "$root"
mkdir .old
pivot_root . .old
umount -l /.old
rmdir /.old
hostname machine
# From here on a mistake must not be able to reach the real machine: no disk of it is mounted writable, or we stop.
if awk '$2 == "/" && $3 != "overlay" || $1 ~ "^/dev/" && $4 !~ /(^|,)ro(,|$)/ { exit 1 }' /proc/mounts; then
  exec env -i container=imprint PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /usr/lib/systemd/systemd --unit=machine.target --log-target=console --show-status=0
fi
echo "machine.sh: a file system of the real machine is still writable in here; systemd is not started" >&2
cat /proc/mounts >&2
exit 1
