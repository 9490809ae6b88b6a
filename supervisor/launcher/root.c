// SPDX-License-Identifier: Apache-2.0
/*
 * The run's root: one tmpfs, made by the daemon, on which the plan's ops are carried out in order.
 * It is writable until the plan's last op. No path is ever resolved through a link that somebody
 * else could have placed: see resolve().
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "sandbox.h"

/* A mounted directory may hold links that somebody else has placed, or exchanges now: none is
 * followed. */
static int resolve(int root, const char *path, uint64_t flags)
{
	struct open_how how = {
		.flags = flags | O_CLOEXEC,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS,
	};

	return (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
}

/* The usual case: everything above the last component is there. */
static int existing_parent_of(int root, const char *path, const char **last)
{
	const char *slash = strrchr(path, '/');
	size_t length = (size_t)(slash - path);
	char parent[256];

	if (!slash[1] || length >= sizeof(parent))
		return -1;
	*last = slash + 1;
	if (!length)
		return fcntl(root, F_DUPFD_CLOEXEC, 3);
	memcpy(parent, path, length);
	parent[length] = 0;
	return resolve(root, parent, O_PATH | O_DIRECTORY);
}

/* Opens the directory that holds `path`'s last component, making what is missing; `*last` becomes
 * that component. */
static int parent_of(int root, const char *path, const char **last, const struct op *op,
		     const struct plan *plan)
{
	int at = existing_parent_of(root, path, last);
	char name[256];

	if (at >= 0)
		return at;
	at = fcntl(root, F_DUPFD_CLOEXEC, 3);

	while (at >= 0) {
		const char *end;
		size_t length;
		int next;

		while (*path == '/')
			path++;
		end = strchrnul(path, '/');
		if (!end[strspn(end, "/")]) {
			*last = path;
			return at;
		}
		length = (size_t)(end - path);
		if (length >= sizeof(name)) {
			errno = ENAMETOOLONG;
			break;
		}
		memcpy(name, path, length);
		name[length] = 0;
		if (!mkdirat(at, name, 0755)) {
			if ((op->w.flags & OP_OWN) &&
			    fchownat(at, name, plan->w.host_uid, plan->w.host_gid,
				     AT_SYMLINK_NOFOLLOW))
				break;
		} else if (errno != EEXIST) {
			break;
		}
		next = resolve(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW);
		if (next < 0)
			break;
		close(at);
		at = next;
		path = end;
	}
	if (at >= 0) {
		int error = errno;

		close(at);
		errno = error;
	}
	return -1;
}

static int make_entry(int root, const struct op *op, const struct plan *plan)
{
	const char *last;
	int at = parent_of(root, op->target, &last, op, plan);
	int rc = 0;
	int error;

	if (at < 0)
		return -1;
	if (op->w.kind == OP_SYMLINK)
		rc = symlinkat(op->source, at, last);
	else if (op->w.kind == OP_MKDIR)
		rc = mkdirat(at, last, op->w.mode & 07777);
	else if (op->w.kind == OP_DEVICE)
		rc = mknodat(at, last, S_IFCHR | (op->w.mode & 0777),
			     makedev(op->w.idmap_uid, op->w.idmap_gid));
	else
		rc = mknodat(at, last, S_IFREG | (op->w.mode & 0777), 0);
	if (rc && errno == EEXIST && (op->w.kind == OP_MKDIR || op->w.kind == OP_FILE)) {
		rc = 0;
	} else if (!rc) {
		if (op->w.flags & OP_OWN)
			rc = fchownat(at, last, plan->w.host_uid, plan->w.host_gid,
				      AT_SYMLINK_NOFOLLOW);
		if (!rc && op->w.kind == OP_MKDIR && (op->w.mode & 07000))
			rc = fchmodat(at, last, op->w.mode & 07777,
				      0); /* mkdir(2) drops the sticky bit's company */
	}
	error = errno;
	close(at);
	errno = error;
	return rc;
}

static int attach(int root, int mount_fd, const char *target)
{
	int at = resolve(root, target, O_PATH | O_NOFOLLOW);
	int rc;

	if (at < 0)
		return -1;
	rc = move_mount(mount_fd, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	close(at);
	return rc;
}

static int set_attributes(int fd, uint64_t set, int idmap_fd, bool recursive)
{
	struct mount_attr attr = {.attr_set = set};

	if (idmap_fd >= 0) {
		attr.attr_set |= MOUNT_ATTR_IDMAP;
		attr.userns_fd = (uint64_t)idmap_fd;
	}
	if (!attr.attr_set)
		return 0;
	return mount_setattr(fd, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0), &attr,
			     sizeof(attr));
}

/* `options`: keys and values by turns, then NULL. */
static int new_mount(const char *type, const char *const *options, uint64_t attributes)
{
	int context = fsopen(type, FSOPEN_CLOEXEC);
	int fd = -1;

	if (context < 0)
		return -1;
	for (; *options; options += 2) {
		if (fsconfig(context, FSCONFIG_SET_STRING, options[0], options[1], 0))
			goto out;
	}
	if (!fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		fd = fsmount(context, FSMOUNT_CLOEXEC, (unsigned int)attributes);
out:
	close(context);
	return fd;
}

/* proc is mounted writable, copied for our own writes, and only then closed to the run. */
static int mount_proc(struct sandbox *sandbox, int root, const struct op *op)
{
	int fd = new_mount("proc", (const char *const[]){NULL},
			   op->w.attr_set & ~(uint64_t)MOUNT_ATTR_RDONLY);

	if (fd < 0 || attach(root, fd, op->target))
		return -1;
	sandbox->proc_fd = open_tree(fd, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	if (sandbox->proc_fd < 0)
		return -1;
	return set_attributes(fd, op->w.attr_set & MOUNT_ATTR_RDONLY, -1, false);
}

static unsigned int mount_number(const struct plan *plan, int index)
{
	unsigned int number = 0;

	for (int i = 0; i < index; i++)
		number += plan->ops[i].w.kind == OP_MOUNT;
	return number;
}

static int mount_given(struct sandbox *sandbox, int root, const struct op *op, int index)
{
	bool recursive = op->w.flags & OP_RECURSIVE;
	int idmap = (op->w.flags & OP_IDMAP) ? sandbox->idmap_fds[index] : -1;

	if (set_attributes(op->w.fd, op->w.attr_set, idmap, recursive)) {
		if (idmap < 0 || errno != EINVAL)
			return -1;
		if (!(op->w.flags & OP_IDMAP_OPTIONAL))
			sandbox_fail(sandbox->report, STAGE_IDMAP, index, errno);
		if (set_attributes(op->w.fd, op->w.attr_set, -1, recursive))
			return -1;
		sandbox->report->idmap_skipped |= UINT64_C(1) << mount_number(sandbox->plan, index);
	}
	return attach(root, op->w.fd, op->target);
}

static int mount_bind(int root, const struct op *op)
{
	int source = resolve(root, op->source, O_PATH | O_NOFOLLOW);
	int fd;

	if (source < 0)
		return -1;
	fd = open_tree(source, "", AT_EMPTY_PATH | OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	close(source);
	if (fd < 0 || set_attributes(fd, op->w.attr_set, -1, false) || attach(root, fd, op->target))
		return -1;
	close(fd);
	return 0;
}

static int move_template(int root, const struct op *op)
{
	int templates = open("/t", O_PATH | O_DIRECTORY | O_CLOEXEC);
	int fd = templates < 0 ? -1 : open_tree(templates, op->source, OPEN_TREE_CLOEXEC);
	int rc = fd < 0 ? -1 : attach(root, fd, op->target);
	int error = errno;

	close(fd);
	close(templates);
	errno = error;
	return rc;
}

/* The launcher's own root keeps an empty file and an empty directory for this. */
static int hide(int root, const struct op *op)
{
	struct stat st;
	int at = resolve(root, op->target, O_PATH | O_NOFOLLOW);
	int fd;
	int rc;

	if (at < 0)
		return errno == ENOENT ? 0 : -1;
	if (fstat(at, &st)) {
		close(at);
		return -1;
	}
	fd = open_tree(AT_FDCWD, S_ISDIR(st.st_mode) ? "/empty" : "/null",
		       OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
	rc = fd < 0 ? -1
		    : set_attributes(fd,
				     MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV |
					     MOUNT_ATTR_NOEXEC,
				     -1, false);
	if (!rc)
		rc = move_mount(fd, "", at, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
	close(at);
	if (fd >= 0)
		close(fd);
	return rc;
}

static int set_target_attributes(int root, const struct op *op)
{
	int at = resolve(root, op->target, O_PATH | O_NOFOLLOW);
	int rc;

	if (at < 0)
		return -1;
	rc = set_attributes(at, op->w.attr_set, -1, op->w.flags & OP_RECURSIVE);
	close(at);
	return rc;
}

static int carry_out(struct sandbox *sandbox, int root, const struct op *op, int index)
{
	int fd;

	switch (op->w.kind) {
	case OP_MKDIR:
	case OP_FILE:
	case OP_SYMLINK:
	case OP_DEVICE:
		return make_entry(root, op, sandbox->plan);
	case OP_TEMPLATE:
		return move_template(root, op);
	case OP_MOUNT:
		return mount_given(sandbox, root, op, index);
	case OP_BIND:
		return mount_bind(root, op);
	case OP_PROC:
		return mount_proc(sandbox, root, op);
	case OP_DEVPTS:
		/* Bounded: all of the host's terminals come out of one number, kernel.pty.max. */
		fd = new_mount("devpts",
			       (const char *const[]){"ptmxmode", "0666", "max", "64", NULL},
			       op->w.attr_set);
		return fd < 0 ? -1 : attach(root, fd, op->target);
	case OP_SETATTR:
		return set_target_attributes(root, op);
	case OP_HIDE:
		return hide(root, op);
	}
	errno = EBADMSG;
	return -1;
}

void root_set_up(struct sandbox *sandbox)
{
	const struct plan *plan = sandbox->plan;
	int root;

	umask(0);
	if (move_mount(plan->w.fd_tmpfs, "", AT_FDCWD, "/r", MOVE_MOUNT_F_EMPTY_PATH))
		sandbox_fail(sandbox->report, STAGE_ROOT, 0, errno);
	root = open("/r", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		sandbox_fail(sandbox->report, STAGE_ROOT, 1, errno);
	for (uint32_t i = 0; i < plan->w.op_count; i++) {
		if (carry_out(sandbox, root, &plan->ops[i], (int)i))
			sandbox_fail(sandbox->report, STAGE_MOUNT, (int)i, errno);
	}
	if (fchdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) ||
	    chdir("/"))
		sandbox_fail(sandbox->report, STAGE_PIVOT, 0, errno);
	close(root);
}
