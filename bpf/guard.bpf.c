// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* The guard of files, on hosts that take BPF programs for LSM hooks: attached once for all runs.
 * Its maps are those of probes.bpf.c, but for what is denied. */
#include <linux/bpf.h>

#include "kernel.h"

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#include "guard.h"

#define FMODE_READ	1
#define FMODE_WRITE	2
#define FMODE_EXEC	0x20 /* in f_flags: execve(2)'s own; no caller can set it */
#define PROT_EXEC	4
#define S_IFMT		0170000
#define S_IFREG		0100000
#define NR_MKNOD	133
#define NR_MKNODAT	259
#define RENAME_EXCHANGE 2

/* Of a file that goes by another path afterwards: whatever its rules deny would no longer hold. */
#define MOVED  (USE_READ | USE_WRITE | USE_EXEC | USE_UNLINK | USE_RENAME | USE_CHMOD | USE_LINK)
#define LINKED (USE_READ | USE_WRITE | USE_EXEC | USE_CHMOD | USE_LINK)

/* The current task's, where some of `uses` is denied to it; its init's own calls and those before
 * the program is executed are ours. */
static __always_inline struct run_entry *guarded_run(__u64 *cgroup, __u32 uses)
{
	struct run_entry *run = run_of_current(cgroup);

	if (!run || !(run->guarded & uses) || !run->init_tgid ||
	    (__u32)(bpf_get_current_pid_tgid() >> 32) == run->init_tgid)
		return 0;
	return run;
}

__noinline int tell(struct run_entry *run, __u64 cgroup, unsigned long mount, unsigned long dentry,
		    __u64 verdict)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	__u32 tid = (__u32)bpf_get_current_pid_tgid(), nr;
	struct denial_record *record;
	struct run_counts *counts;

	if (!run)
		return 0;
	counts = counts_of(run);
	if (!counts)
		return 0;
	nr = (__u32)number_of(regs);
	bpf_map_update_elem(&refused, &tid, &nr, BPF_ANY);
	record = reserve_note(run, counts, sizeof(*record));
	if (!record)
		return 0;
	fill_head(&record->head, counts, cgroup, RECORD_DENIAL, sizeof(*record));
	record->nr = nr;
	record->verdict = (__u32)verdict;
	record->rule = (__u32)(verdict >> 32);
	record->path_size = resolve_path(mount, dentry, (struct path_names *)record->path);
	count(&counts->seen);
	bpf_ringbuf_submit(record, wakes(run));
	return 0;
}

/* A pointer whose type the verifier knows, as the global functions take it. */
static __always_inline unsigned long number_at_place(const void *place)
{
	unsigned long number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), place);
	return number;
}

/* Whether it is denied, which is told. */
static __always_inline int denies(struct run_entry *run, __u64 cgroup, unsigned long mount,
				  unsigned long dentry, __u32 uses)
{
	__u64 verdict = verdict_of(mount, dentry, run->rules, uses);

	if (!(__u32)verdict)
		return 0;
	tell(run, cgroup, mount, dentry, verdict);
	if ((__u32)verdict >> KILL_SHIFT & ((1 << USES) - 1))
		doom(run);
	return 1;
}

static __always_inline int denies_path(const struct path *path, __u32 uses)
{
	struct run_entry *run;
	__u64 cgroup;

	run = guarded_run(&cgroup, uses);
	return run && denies(run, cgroup, number_at_place(&path->mnt),
			     number_at_place(&path->dentry), uses);
}

/* Of a name in a directory. */
static __always_inline int denies_name(const struct path *dir, struct dentry *dentry, __u32 uses)
{
	struct run_entry *run;
	__u64 cgroup;

	run = guarded_run(&cgroup, uses);
	return run &&
	       denies(run, cgroup, number_at_place(&dir->mnt), number_at_place(&dentry), uses);
}

/*
 * Of a file that is to go by another path: whether a rule keeps it where it lies. Those that kill
 * say what must not be done to it there, not that it must stay.
 */
static __always_inline int denies_moving(const struct path *dir, struct dentry *dentry, __u32 uses)
{
	unsigned long mount = number_at_place(&dir->mnt), place = number_at_place(&dentry);
	const __u32 all = (1 << USES) - 1;
	struct run_entry *run;
	__u64 cgroup, verdict;
	__u32 kept;

	run = guarded_run(&cgroup, PINNED);
	if (!run)
		return 0;
	verdict = verdict_of(mount, place, run->rules, uses);
	kept = (__u32)verdict & ((all & ~((__u32)verdict >> KILL_SHIFT)) | HOLDS | UNRESOLVED);
	if (!kept)
		return 0;
	tell(run, cgroup, mount, place, (verdict >> 32 << 32) | kept);
	return 1;
}

SEC("lsm/file_open")
int BPF_PROG(guard_file_open, struct file *file)
{
	unsigned int mode = file->f_mode;
	__u32 uses = (mode & FMODE_READ ? USE_READ : 0) | (mode & FMODE_WRITE ? USE_WRITE : 0);

	if (file->f_flags & FMODE_EXEC)
		return 0; /* guard_exec's */
	return denies_path(&file->f_path, uses ? uses : USE_READ | USE_WRITE) ? -EPERM : 0;
}

SEC("lsm/path_truncate")
int BPF_PROG(guard_truncate, const struct path *path)
{
	return denies_path(path, USE_WRITE) ? -EPERM : 0;
}

/* Set by the daemon to a thread of its own, and by that thread's chmod(2) to 0: whether the kernel
 * asks at all, which it does not unless booted so. */
volatile __u32 trial;

SEC("lsm/path_chmod")
int BPF_PROG(guard_chmod, const struct path *path)
{
	if (trial && trial == (__u32)bpf_get_current_pid_tgid())
		trial = 0;
	return denies_path(path, USE_CHMOD) ? -EPERM : 0;
}

SEC("lsm/path_chown")
int BPF_PROG(guard_chown, const struct path *path)
{
	return denies_path(path, USE_CHMOD) ? -EPERM : 0;
}

SEC("lsm/path_unlink")
int BPF_PROG(guard_unlink, const struct path *dir, struct dentry *dentry)
{
	return denies_name(dir, dentry, USE_UNLINK) ? -EPERM : 0;
}

SEC("lsm/path_rmdir")
int BPF_PROG(guard_rmdir, const struct path *dir, struct dentry *dentry)
{
	return denies_name(dir, dentry, USE_UNLINK) ? -EPERM : 0;
}

SEC("lsm/path_mkdir")
int BPF_PROG(guard_mkdir, const struct path *dir, struct dentry *dentry)
{
	return denies_name(dir, dentry, USE_MKDIR) ? -EPERM : 0;
}

SEC("lsm/path_symlink")
int BPF_PROG(guard_symlink, const struct path *dir, struct dentry *dentry)
{
	return denies_name(dir, dentry, USE_LINK) ? -EPERM : 0;
}

/* mknod(2), bind(2) of a Unix socket, and every file that open(2) makes, which is there before it
 * is opened. */
SEC("lsm/path_mknod")
int BPF_PROG(guard_mknod, const struct path *dir, struct dentry *dentry, unsigned short mode)
{
	struct task_struct *task = bpf_get_current_task_btf();
	long nr = number_of((struct pt_regs *)bpf_task_pt_regs(task));
	__u32 uses = USE_MKDIR;

	if ((mode & S_IFMT) == S_IFREG || !(mode & S_IFMT))
		uses = nr == NR_MKNOD || nr == NR_MKNODAT ? USE_MKDIR | USE_WRITE : USE_WRITE;
	return denies_name(dir, dentry, uses) ? -EPERM : 0;
}

/* Both names lie in one mount, else it fails by itself. */
SEC("lsm/path_link")
int BPF_PROG(guard_link, struct dentry *old, const struct path *dir, struct dentry *dentry)
{
	if (denies_name(dir, old, USE_LINK) || denies_moving(dir, old, LINKED) ||
	    denies_name(dir, dentry, USE_LINK | USE_WRITE))
		return -EPERM;
	return 0;
}

SEC("lsm/path_rename")
int BPF_PROG(guard_rename, const struct path *old_dir, struct dentry *old,
	     const struct path *new_dir, struct dentry *new, unsigned int flags)
{
	if (denies_name(old_dir, old, USE_RENAME) || denies_moving(old_dir, old, MOVED | HOLDS) ||
	    denies_name(new_dir, new, USE_RENAME | USE_WRITE) ||
	    (flags & RENAME_EXCHANGE && denies_moving(new_dir, new, MOVED | HOLDS)))
		return -EPERM;
	return 0;
}

/* Also of the program of a run itself, which nothing has been executed before. */
static __always_inline int denies_exec(struct file *file)
{
	struct run_entry *run;
	__u64 cgroup;

	run = run_of_current(&cgroup);
	return run && run->guarded & USE_EXEC &&
	       denies(run, cgroup, number_at_place(&file->f_path.mnt),
		      number_at_place(&file->f_path.dentry), USE_EXEC);
}

SEC("lsm/bprm_check_security")
int BPF_PROG(guard_exec, struct linux_binprm *bprm)
{
	return denies_exec(bprm->file) ? -EPERM : 0;
}

/* As a dynamic linker does that is told to execute a file. */
SEC("lsm/mmap_file")
int BPF_PROG(guard_map, struct file *file, unsigned long wanted, unsigned long protection)
{
	if (!file || !(protection & PROT_EXEC))
		return 0;
	return denies_exec(file) ? -EPERM : 0;
}

/*
 * A file that is mounted elsewhere has another path. open_tree(2) asks no program, but only whoever
 * made a user namespace or is root may call it (userns_create: Linux 6.1).
 */
static __always_inline int is_pinned(void)
{
	__u64 cgroup;

	return guarded_run(&cgroup, PINNED) != 0;
}

SEC("lsm/userns_create")
int BPF_PROG(guard_user_namespace)
{
	return is_pinned() ? -EPERM : 0;
}

SEC("lsm/sb_mount")
int BPF_PROG(guard_mount)
{
	return is_pinned() ? -EPERM : 0;
}

SEC("lsm/move_mount")
int BPF_PROG(guard_move_mount)
{
	return is_pinned() ? -EPERM : 0;
}

SEC("lsm/sb_pivotroot")
int BPF_PROG(guard_pivot_root)
{
	return is_pinned() ? -EPERM : 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

const struct denial_record *denial_record_type __attribute__((unused));
