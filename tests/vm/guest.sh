#!/bin/sh
# Inside the guest, as root: makes a root file system that can be written, checks the kernel, runs "$@" in $JOB_DIR within
# $JOB_SECONDS and tells its exit status in the last line of the output.
set -eu

tell() {
	echo "supervisor-vm: status $1"
	exit "$1"
}

# Second half: already in the new root.
if [ "${1-}" = --inside ]; then
	shift
	cd "$JOB_DIR"
	status=0
	# INT, which pytest answers with what it has so far.
	timeout --signal=INT --kill-after=30 "$JOB_SECONDS" "$@" </dev/null || status=$?
	tell "$status"
fi

trap 'echo "vm: the guest could not be prepared"; tell 125' EXIT
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# shellcheck disable=SC2034
read -r up _ </proc/uptime

for module in loop ext4 overlay veth; do
	modprobe "$module" || echo "vm: no kernel module $module"
done

[ "$(stat --file-system --format=%T /sys/fs/cgroup)" = cgroup2fs ]
for controller in cpuset cpu io memory pids; do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done

# The root that we were given is 9p without a cache, read-only but for some overlays in memory. A single overlay can be
# written everywhere: below, 9p with a cache; above, ext4, where what is opened most lies already (see run.py).
disk=/mnt
mount -L supervisor "$disk"
mkdir -p /run/lower /run/root "$disk/upper" "$disk/overlay"
mount -t 9p -o ro,trans=virtio,version=9p2000.L,access=any,msize=512000,cache=loose hostroot /run/lower
mount -t overlay -o "lowerdir=/run/lower,upperdir=$disk/upper,workdir=$disk/overlay" root /run/root
for directory in proc sys dev; do
	mount --rbind "/$directory" "/run/root/$directory"
done
mount -t tmpfs -o mode=755 run /run/root/run
mount --bind "$disk" /run/root/mnt
mkdir -p "$disk/test" "$disk/state" "$disk/home" /run/root/run/lock
mkdir -m 1777 "$disk/tmp"

export HOME=/mnt/home TMPDIR=/mnt/tmp SUPERVISOR_TEST_DIR=/mnt/test SUPERVISOR_STATE_DIR=/mnt/state
export HYPOTHESIS_STORAGE_DIRECTORY=/mnt/home/hypothesis
ulimit -n 65536 || true

echo "vm: $(uname -r) up after $up s; lsm $(cat /sys/kernel/security/lsm); cgroup2 $(cat /sys/fs/cgroup/cgroup.subtree_control)"
trap - EXIT
# pivot_root, not chroot: a process with another root than its mount namespace's may not create user namespaces.
exec unshare --mount --propagation private /bin/sh -euc '
	cd /run/root
	mkdir run/old
	pivot_root . run/old
	cd /
	umount -l /run/old
	rmdir /run/old
	exec /bin/sh "$@"
' sh "$0" --inside "$@"
