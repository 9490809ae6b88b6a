// SPDX-License-Identifier: Apache-2.0
/* Namespaces and mounts. */
#ifndef SUPERVISOR_PROBE_MOUNTS_H
#define SUPERVISOR_PROBE_MOUNTS_H

#include <limits.h>
#include <linux/mount.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/stat.h>

#include "probe_common.h"

#define MAP_UID 805306368 /* any uid that is not 0 and has no account */

/* <sys/mount.h> and <linux/mount.h> do not go together before glibc 2.37. */
int mount(const char *source, const char *target, const char *type, unsigned long flags,
	  const void *data);
#define OLD_MS_REC     16384
#define OLD_MS_PRIVATE (1 << 18)

/* namespaces(7) */

static int probe_pid_namespace(void)
{
	pid_t pid = clone3(CLONE_NEWPID, NULL, 0);

	if (pid < 0)
		return errno;
	if (pid == 0)
		_exit(getpid() == 1 ? 0 : 1);
	return wait_for(pid) ? unexpected("its first process is not PID 1") : 0;
}

static int private_mounts(void)
{
	if (unshare(CLONE_NEWNS) || mount("", "/", NULL, OLD_MS_REC | OLD_MS_PRIVATE, NULL))
		return errno;
	return 0;
}

static int probe_network_namespace(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd;

	if (unshare(CLONE_NEWNET))
		return errno;
	fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request))
		return errno;
	return 0;
}

static int probe_ipc_namespace(void)
{
	int id;

	if (unshare(CLONE_NEWIPC))
		return errno;
	id = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
	if (id >= 0)
		shmctl(id, IPC_RMID, NULL);
	return id < 0 && errno != ENOSYS ? errno : 0;
}

static int probe_uts_namespace(void)
{
	return unshare(CLONE_NEWUTS) || sethostname("probe", 5) ? errno : 0;
}

static int probe_cgroup_namespace(void)
{
	return unshare(CLONE_NEWCGROUP) ? errno : 0;
}

/* A descriptor of a new user namespace in which 0 is MAP_UID outside; -1 and errno. */
static int user_namespace(void)
{
	char path[64], map[64];
	pid_t pid = pausing_child(CLONE_NEWUSER, NULL, 0);
	int fd = -1, saved;

	if (pid < 0)
		return -1;
	snprintf(map, sizeof(map), "0 %d 1", MAP_UID);
	snprintf(path, sizeof(path), "/proc/%d/uid_map", pid);
	if (write_at(AT_FDCWD, path, map) == 0) {
		snprintf(path, sizeof(path), "/proc/%d/gid_map", pid);
		if (write_at(AT_FDCWD, path, map) == 0) {
			snprintf(path, sizeof(path), "/proc/%d/ns/user", pid);
			fd = open(path, O_RDONLY | O_CLOEXEC);
		}
	}
	saved = errno;
	kill(pid, SIGKILL);
	wait_for(pid);
	errno = saved;
	return fd;
}

static int probe_user_namespace(void)
{
	return user_namespace() < 0 ? errno : 0;
}

/* Mounts: fsopen(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2) */

static int new_tmpfs(const char *size, const char *inodes)
{
	int context = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);

	if (context < 0)
		return -1;
	if (syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "size", size, 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "nr_inodes", inodes, 0) ||
	    syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		return -1;
	return syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0);
}

static int probe_new_mount_api(void)
{
	struct mount_attr read_only = {.attr_set = MOUNT_ATTR_RDONLY};
	int failed = private_mounts(), tmpfs, tree;

	if (failed)
		return failed;
	tmpfs = new_tmpfs("64k", "8");
	if (tmpfs < 0)
		return errno;
	tree = syscall(SYS_open_tree, AT_FDCWD, "/", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (tree < 0)
		return errno;
	if (syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &read_only, sizeof(read_only)))
		return errno;
	if (syscall(SYS_move_mount, tmpfs, "", AT_FDCWD, "/proc", MOVE_MOUNT_F_EMPTY_PATH))
		return errno;
	return open("/proc/x", O_CREAT | O_WRONLY | O_CLOEXEC, 0600) < 0 ? errno : 0;
}

/* Whether the detached mount `tree` shows its root's owner through a user namespace. */
static int idmap(int tree)
{
	struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP};
	struct stat before, after;
	int ns = user_namespace();

	if (ns < 0)
		return errno;
	attr.userns_fd = ns;
	if (fstat(tree, &before) ||
	    syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) ||
	    fstat(tree, &after))
		return errno;
	if (before.st_uid == 0 && after.st_uid != MAP_UID)
		return unexpected("the owner is not mapped");
	return 0;
}

static int probe_idmapped_mounts_tmpfs(void)
{
	int failed = private_mounts(), tree;

	if (failed)
		return failed;
	tree = new_tmpfs("64k", "8");
	return tree < 0 ? errno : idmap(tree);
}

/* The state directory, or the nearest directory above it that is there already. */
static int open_state(int flags)
{
	char path[PATH_MAX];
	int fd;

	if (strlen(state_dir) >= sizeof(path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	strcpy(path, state_dir);
	while ((fd = open(path, flags | O_DIRECTORY | O_CLOEXEC)) < 0 && errno == ENOENT &&
	       strlen(path) > 1) {
		char *slash = strrchr(path, '/');

		if (!slash)
			break;
		slash[slash == path] = 0;
	}
	return fd;
}

static int probe_idmapped_mounts_state(void)
{
	int failed = private_mounts(), dir, tree;

	if (failed)
		return failed;
	dir = open_state(O_PATH);
	if (dir < 0)
		return errno;
	tree = syscall(SYS_open_tree, dir, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH);
	return tree < 0 ? errno : idmap(tree);
}

static int probe_tmpfs_quota(void)
{
	static const char block[16384];
	char name[] = "a";
	int failed = private_mounts(), tree, fd, count;
	size_t written = 0;

	if (failed)
		return failed;
	tree = new_tmpfs("64k", "4");
	if (tree < 0)
		return errno;
	fd = openat(tree, "f", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	while (written < 2 * 65536 && write(fd, block, sizeof(block)) == sizeof(block))
		written += sizeof(block);
	if (written > 65536)
		return unexpected("more was written than size allows");
	for (count = 0; count < 8; count++, name[0]++)
		if (mknodat(tree, name, S_IFREG | 0600, 0))
			break;
	return count < 4 ? 0 : unexpected("more files were made than nr_inodes allows");
}

#endif
