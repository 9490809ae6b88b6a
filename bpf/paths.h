/* SPDX-License-Identifier: Apache-2.0 */
/* Where a file lies: its names up to the root of its mount namespace, whatever it was called. */
#ifndef SUPERVISOR_PATHS_H
#define SUPERVISOR_PATHS_H

#include "runs.h"

#define NAME_SIZE      64
#define MAX_DEPTH      32
#define LONG_NAME_SIZE 256 /* NAME_MAX and a NUL */
#define LONG_DEPTH     512

static __always_inline struct file *file_of(struct task_struct *task, long fd)
{
	struct file **table = BPF_CORE_READ(task, files, fdt, fd);
	struct file *file = 0;

	bpf_probe_read_kernel(&file, sizeof(file), table + fd);
	return file;
}

/* On the way from a file up to the root of its mount namespace. */
struct climb {
	struct dentry *dentry;
	struct mount *mount;
	char *path;
	__u32 size;
};

/* One step: into the mount above, or one name up. Returns 1 at the top, or where there is no room.
 */
static __always_inline long climb_step_by(struct climb *climb, __u32 room, __u32 name_size)
{
	struct dentry *dentry = climb->dentry;
	struct mount *mount = climb->mount;
	struct dentry *parent;
	long length;

	if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
		struct mount *above = BPF_CORE_READ(mount, mnt_parent);

		climb->dentry = BPF_CORE_READ(mount, mnt_mountpoint);
		climb->mount = above;
		return above == mount;
	}
	parent = BPF_CORE_READ(dentry, d_parent);
	if (parent == dentry || climb->size > room - name_size)
		return 1;
	length = bpf_probe_read_kernel_str(climb->path + climb->size, name_size,
					   BPF_CORE_READ(dentry, d_name.name));
	if (length <= 0)
		return 1;
	climb->size += (__u32)length & (name_size * 2 - 1);
	climb->dentry = parent;
	return 0;
}

static long climb_step(__u32 index, void *context)
{
	return climb_step_by(context, PATH_SIZE, NAME_SIZE);
}

static long climb_long_step(__u32 index, void *context)
{
	return climb_step_by(context, LONG_PATH_SIZE, LONG_NAME_SIZE);
}

struct path_names {
	char names[PATH_SIZE];
};

struct long_path {
	char text[LONG_PATH_SIZE];
};

/*
 * The names of a path, the last one first. bpf_loop(): Linux 5.17; the verifier looks at the step
 * once, and at a global function such as this one once for all its callers.
 */
__noinline __u32 resolve_path(unsigned long mount, unsigned long dentry, struct path_names *path)
{
	struct climb climb = {
		.dentry = (struct dentry *)dentry,
		.mount = (struct mount *)(mount - bpf_core_field_offset(struct mount, mnt)),
		.size = nothing,
	};

	if (!path)
		return 0;
	climb.path = path->names;
	bpf_loop(MAX_DEPTH, climb_step, &climb, 0);
	return climb.size;
}

/* The same with room for every path that has a name. */
__noinline __u32 resolve_long(unsigned long mount, unsigned long dentry, struct long_path *path)
{
	struct climb climb = {
		.dentry = (struct dentry *)dentry,
		.mount = (struct mount *)(mount - bpf_core_field_offset(struct mount, mnt)),
		.size = nothing,
	};

	if (!path)
		return 0;
	climb.path = path->text;
	bpf_loop(LONG_DEPTH, climb_long_step, &climb, 0);
	return climb.size;
}

static __always_inline __u32 resolve(struct file *file, char path[PATH_SIZE])
{
	return resolve_path((unsigned long)BPF_CORE_READ(file, f_path.mnt),
			    (unsigned long)BPF_CORE_READ(file, f_path.dentry),
			    (struct path_names *)path);
}

struct base {
	struct vfsmount *mount;
	struct dentry *dentry;
};

/* Where relative names begin: in the directory of that descriptor, or in the current one. */
static __always_inline struct base base_of(struct task_struct *task, int directory)
{
	struct base base;

	if (directory >= 0) {
		struct file *file = file_of(task, directory);

		base.mount = BPF_CORE_READ(file, f_path.mnt);
		base.dentry = BPF_CORE_READ(file, f_path.dentry);
	} else {
		base.mount = BPF_CORE_READ(task, fs, pwd.mnt);
		base.dentry = BPF_CORE_READ(task, fs, pwd.dentry);
	}
	return base;
}

static __always_inline int is_relative(unsigned long pointer)
{
	char first = 0;

	bpf_probe_read_user(&first, 1, (void *)pointer);
	return first != '/';
}

#endif
