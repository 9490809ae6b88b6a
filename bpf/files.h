/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that name files, of runs that are traced in full. */
#ifndef SUPERVISOR_FILES_H
#define SUPERVISOR_FILES_H

#include "runs.h"

#define PATHS_AT(first, second) ((first) + 1 | ((second) + 1) << 4)
#define PATH_AT(first)		((first) + 1)
#define OPENS			0x80

#define NAME_SIZE 64
#define MAX_DEPTH 32

/* By number: which arguments are paths. */
static const __u8 file_calls[SYSCALL_SLOTS] = {
	[2] = OPENS | PATH_AT(0),   /* open */
	[76] = PATH_AT(0),	    /* truncate */
	[80] = PATH_AT(0),	    /* chdir */
	[82] = PATHS_AT(0, 1),	    /* rename */
	[83] = PATH_AT(0),	    /* mkdir */
	[84] = PATH_AT(0),	    /* rmdir */
	[85] = OPENS | PATH_AT(0),  /* creat */
	[86] = PATHS_AT(0, 1),	    /* link */
	[87] = PATH_AT(0),	    /* unlink */
	[88] = PATHS_AT(0, 1),	    /* symlink */
	[90] = PATH_AT(0),	    /* chmod */
	[92] = PATH_AT(0),	    /* chown */
	[94] = PATH_AT(0),	    /* lchown */
	[133] = PATH_AT(0),	    /* mknod */
	[161] = PATH_AT(0),	    /* chroot */
	[188] = PATH_AT(0),	    /* setxattr */
	[257] = OPENS | PATH_AT(1), /* openat */
	[258] = PATH_AT(1),	    /* mkdirat */
	[259] = PATH_AT(1),	    /* mknodat */
	[260] = PATH_AT(1),	    /* fchownat */
	[263] = PATH_AT(1),	    /* unlinkat */
	[264] = PATHS_AT(1, 3),	    /* renameat */
	[265] = PATHS_AT(1, 3),	    /* linkat */
	[266] = PATHS_AT(0, 2),	    /* symlinkat */
	[268] = PATH_AT(1),	    /* fchmodat */
	[316] = PATHS_AT(1, 3),	    /* renameat2 */
	[437] = OPENS | PATH_AT(1), /* openat2 */
	[452] = PATH_AT(1),	    /* fchmodat2 */
};

static __always_inline unsigned long argument(struct pt_regs *regs, __u32 index)
{
	switch (index) {
	case 0:
		return regs->di;
	case 1:
		return regs->si;
	case 2:
		return regs->dx;
	default:
		return regs->r10;
	}
}

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

/* One step: into the mount above, or one name up. Returns 1 at the top. */
static long climb_step(__u32 index, void *context)
{
	struct climb *climb = context;
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
	if (parent == dentry || climb->size > PATH_SIZE - NAME_SIZE)
		return 1;
	length = bpf_probe_read_kernel_str(climb->path + climb->size, NAME_SIZE,
					   BPF_CORE_READ(dentry, d_name.name));
	if (length <= 0)
		return 1;
	climb->size += (__u32)length & (NAME_SIZE * 2 - 1);
	climb->dentry = parent;
	return 0;
}

/* The names of a path, the last one first. bpf_loop(): Linux 5.17; the verifier looks at the step
 * once. */
static __always_inline __u32 resolve(struct file *file, char path[PATH_SIZE])
{
	struct vfsmount *inner = BPF_CORE_READ(file, f_path.mnt);
	struct climb climb = {
		.dentry = BPF_CORE_READ(file, f_path.dentry),
		.mount = (void *)inner - bpf_core_field_offset(struct mount, mnt),
		.path = path,
	};

	bpf_loop(MAX_DEPTH, climb_step, &climb, 0);
	return climb.size;
}

static __always_inline void fill_file(struct file_record *record, struct task_struct *task,
				      struct pt_regs *regs, __u64 cgroup, long nr, __u8 kind,
				      long result, __u16 size)
{
	long length;

	fill_head(&record->head, task, cgroup, RECORD_FILE, size);
	record->result = result;
	record->nr = (__u32)nr;
	record->flags = 0;
	record->resolved = 0;
	if (kind & OPENS)
		record->flags = (__u32)(nr == 2 ? regs->si : nr == 257 ? regs->dx : 0);
	if (kind & OPENS && result >= 0) {
		record->resolved = 1;
		record->path_size = resolve(file_of(task, result), record->path);
		return;
	}
	length = bpf_probe_read_user_str(record->path, PATH_SIZE,
					 (void *)argument(regs, (kind & 7) - 1));
	record->path_size = length > 0 ? (__u32)length : 0;
}

static __always_inline void record_files(struct run_counts *counts, struct task_struct *task,
					 struct pt_regs *regs, __u64 cgroup, long nr, long result)
{
	__u8 kind = file_calls[nr & (SYSCALL_SLOTS - 1)];

	if (!kind)
		return;
	if (kind & 0x70) {
		struct two_file_record *record = bpf_ringbuf_reserve(&details, sizeof(*record), 0);

		if (!record) {
			count(&counts->dropped);
			return;
		}
		fill_file(&record->first, task, regs, cgroup, nr, kind, result, sizeof(*record));
		if (bpf_probe_read_user_str(record->second, PATH_SIZE,
					    (void *)argument(regs, (kind >> 4 & 7) - 1)) < 0)
			record->second[0] = 0;
		count(&counts->seen);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	} else {
		struct file_record *record = bpf_ringbuf_reserve(&details, sizeof(*record), 0);

		if (!record) {
			count(&counts->dropped);
			return;
		}
		fill_file(record, task, regs, cgroup, nr, kind, result, sizeof(*record));
		count(&counts->seen);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
}

#endif
