/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that name files: counted by class, told at once where a rule looks for the name, recorded
 * of runs that are traced in full. */
#ifndef SUPERVISOR_FILES_H
#define SUPERVISOR_FILES_H

#include "names.h"

#define PATHS_AT(first, second) ((first) + 1 | ((second) + 1) << 4)
#define PATH_AT(first)		((first) + 1)
#define BY_DESCRIPTOR		0x08 /* its first argument is the open file itself */
#define OPENS			0x80

#define NR_OPEN	     2
#define NR_CHDIR     80
#define NR_RMDIR     84
#define NR_CREAT     85
#define NR_UNLINK    87
#define NR_CHROOT    161
#define NR_UNLINKAT  263
#define NR_RENAMEAT  264
#define NR_LINKAT    265
#define NR_SYMLINKAT 266
#define NR_RENAMEAT2 316
#define NR_OPENAT    257
#define NR_FIRST_AT  NR_OPENAT
#define NR_EXECVE    59
#define NR_EXECVEAT  322
#define NR_OPENAT2   437

#define EPERM  1
#define EACCES 13

/* fcntl.h is not for kernel programs; FMODE_WRITE is fs.h's. */
#define O_WRONLY    00000001
#define O_RDWR	    00000002
#define O_CREAT	    00000100
#define O_TRUNC	    00001000
#define TMPFILE	    020000000 /* __O_TMPFILE */
#define FMODE_WRITE 2

#define TMPFS_MAGIC 0x01021994

/* By number: which arguments are paths. */
static const __u8 file_calls[SYSCALL_SLOTS] = {
	[2] = OPENS | PATH_AT(0),   /* open */
	[59] = PATH_AT(0),	    /* execve */
	[76] = PATH_AT(0),	    /* truncate */
	[77] = BY_DESCRIPTOR,	    /* ftruncate */
	[80] = PATH_AT(0),	    /* chdir */
	[82] = PATHS_AT(0, 1),	    /* rename */
	[83] = PATH_AT(0),	    /* mkdir */
	[84] = PATH_AT(0),	    /* rmdir */
	[85] = OPENS | PATH_AT(0),  /* creat */
	[86] = PATHS_AT(0, 1),	    /* link */
	[87] = PATH_AT(0),	    /* unlink */
	[88] = PATHS_AT(0, 1),	    /* symlink */
	[90] = PATH_AT(0),	    /* chmod */
	[91] = BY_DESCRIPTOR,	    /* fchmod */
	[92] = PATH_AT(0),	    /* chown */
	[93] = BY_DESCRIPTOR,	    /* fchown */
	[94] = PATH_AT(0),	    /* lchown */
	[133] = PATH_AT(0),	    /* mknod */
	[161] = PATH_AT(0),	    /* chroot */
	[188] = PATH_AT(0),	    /* setxattr */
	[189] = PATH_AT(0),	    /* lsetxattr */
	[190] = BY_DESCRIPTOR,	    /* fsetxattr */
	[197] = PATH_AT(0),	    /* removexattr */
	[198] = PATH_AT(0),	    /* lremovexattr */
	[199] = BY_DESCRIPTOR,	    /* fremovexattr */
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
	[322] = PATH_AT(1),	    /* execveat */
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

#define AT_FDCWD -100 /* fcntl.h */

/* The descriptors that a call's first and second path are relative to. */
static __always_inline int first_directory(struct pt_regs *regs, long nr)
{
	return nr >= NR_FIRST_AT && nr != NR_SYMLINKAT ? (int)regs->di : AT_FDCWD;
}

static __always_inline int second_directory(struct pt_regs *regs, long nr)
{
	if (nr == NR_RENAMEAT || nr == NR_LINKAT || nr == NR_RENAMEAT2)
		return (int)regs->dx;
	return nr == NR_SYMLINKAT ? (int)regs->si : AT_FDCWD;
}

static __always_inline unsigned long first_path(struct pt_regs *regs, __u8 kind)
{
	return argument(regs, (kind & 7) - 1);
}

static __always_inline unsigned long second_path(struct pt_regs *regs, __u8 kind)
{
	return argument(regs, (kind >> 4 & 7) - 1);
}

/* Of numbers alone: the compiler would merge loads from memory of two kinds, which the verifier
 * refuses. */
static __noinline __u32 flags_of(long nr, unsigned long second, unsigned long third)
{
	__u64 flags = 0;

	if (nr == NR_CREAT)
		return O_CREAT | O_WRONLY | O_TRUNC;
	if (nr == NR_OPEN)
		return (__u32)second;
	if (nr == NR_OPENAT)
		return (__u32)third;
	/* openat2(2): struct open_how begins with them. */
	bpf_probe_read_user(&flags, sizeof(flags), (void *)third);
	return (__u32)flags;
}

static __always_inline __u32 open_flags(struct pt_regs *regs, long nr)
{
	return flags_of(nr, regs->si, regs->dx);
}

static __always_inline void fill_file(struct file_record *record, const struct run_counts *counts,
				      struct task_struct *task, struct pt_regs *regs, __u64 cgroup,
				      long nr, __u8 kind, long result, __u16 size)
{
	long length;

	fill_head(&record->head, counts, cgroup, RECORD_FILE, size);
	record->result = result;
	record->nr = (__u32)nr;
	record->resolved = 0;
	record->marks = 0;
	record->cwd_size = 0;
	record->flags = kind & OPENS ? open_flags(regs, nr) : 0;
	if (kind & BY_DESCRIPTOR || (kind & OPENS && result >= 0)) {
		long fd = kind & OPENS ? result : (long)(int)regs->di;

		record->resolved = 1;
		record->path_size = resolve(file_of(task, fd), record->path);
		return;
	}
	length = bpf_probe_read_user_str(record->path, PATH_SIZE, (void *)first_path(regs, kind));
	record->path_size = length > 0 ? (__u32)length : 0;
}

static __always_inline void fill_path(char *path, __u32 size, unsigned long pointer)
{
	if (bpf_probe_read_user_str(path, size, (void *)pointer) < 0)
		path[0] = 0;
}

static __always_inline __u32 fill_base(struct task_struct *task, int directory,
				       char path[PATH_SIZE])
{
	struct base base = base_of(task, directory);

	return resolve_path((unsigned long)base.mount, (unsigned long)base.dentry,
			    (struct path_names *)path);
}

/* With all that its names depend on. */
static __always_inline void fill_placed(struct placed_file_record *record,
					const struct run_counts *counts, struct task_struct *task,
					struct pt_regs *regs, __u64 cgroup, long nr, __u8 kind,
					long result, __u32 marks, __u16 size)
{
	fill_file(&record->first, counts, task, regs, cgroup, nr, kind, result, size);
	record->first.marks = marks;
	record->second[0] = 0;
	record->second_cwd_size = 0;
	if (!record->first.resolved)
		record->first.cwd_size = fill_base(task, first_directory(regs, nr), record->cwd);
	if (kind & 0x70) {
		fill_path(record->second, PATH_SIZE, second_path(regs, kind));
		record->second_cwd_size =
			fill_base(task, second_directory(regs, nr), record->second_cwd);
	}
}

/* What a rule looks for: at once. */
static __always_inline void note_file(struct run_entry *run, struct run_counts *counts,
				      struct task_struct *task, struct pt_regs *regs, __u64 cgroup,
				      long nr, __u8 kind, long result, __u32 marks)
{
	struct placed_file_record *record;

	record = reserve_note(run, counts, sizeof(*record));
	if (!record)
		return;
	fill_placed(record, counts, task, regs, cgroup, nr, kind, result, marks, sizeof(*record));
	count(&counts->seen);
	bpf_ringbuf_submit(record, wakes(run));
}

/* Never by the priority ring: it takes the room of eight. */
static __always_inline void note_long_file(struct run_entry *run, struct run_counts *counts,
					   struct task_struct *task, struct pt_regs *regs,
					   __u64 cgroup, long nr, __u8 kind, long result,
					   __u32 marks)
{
	struct long_file_record *record = reserve_details(counts, sizeof(*record));

	if (!record) {
		count(&counts->dropped);
		count(&counts->unnoted);
		return;
	}
	fill_placed(&record->placed, counts, task, regs, cgroup, nr, kind, result, marks,
		    sizeof(*record));
	if (record->placed.first.resolved) {
		struct file *file = file_of(task, kind & OPENS ? result : (int)regs->di);

		record->placed.first.path_size =
			resolve_long((unsigned long)BPF_CORE_READ(file, f_path.mnt),
				     (unsigned long)BPF_CORE_READ(file, f_path.dentry),
				     (struct long_path *)record->path);
	} else {
		fill_path(record->path, LONG_PATH_SIZE, first_path(regs, kind));
	}
	record->second[0] = 0;
	if (kind & 0x70)
		fill_path(record->second, LONG_PATH_SIZE, second_path(regs, kind));
	count(&counts->seen);
	bpf_ringbuf_submit(record, is_first(run) ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

static __always_inline void record_file(struct run_counts *counts, struct task_struct *task,
					struct pt_regs *regs, __u64 cgroup, long nr, __u8 kind,
					long result)
{
	if (kind & 0x70) {
		struct two_file_record *record = reserve_details(counts, sizeof(*record));

		if (!record) {
			count(&counts->dropped);
			return;
		}
		fill_file(&record->first, counts, task, regs, cgroup, nr, kind, result,
			  sizeof(*record));
		fill_path(record->second, PATH_SIZE, second_path(regs, kind));
		count(&counts->seen);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	} else {
		struct file_record *record = reserve_details(counts, sizeof(*record));

		if (!record) {
			count(&counts->dropped);
			return;
		}
		fill_file(record, counts, task, regs, cgroup, nr, kind, result, sizeof(*record));
		count(&counts->seen);
		bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
}

static __always_inline void count_open(struct run_counts *counts, __u32 found, int writes)
{
	struct file_count *files = &counts->files[found >> NAME_CLASS_SHIFT & (FILE_CLASSES - 1)];

	count(writes ? &files->written : &files->read);
}

/* What a program lies in that has no name: memfd_create(2) calls its files "memfd:...". */
static __always_inline __u32 marks_of_program(struct file *file)
{
	char name[8] = {};

	if (BPF_CORE_READ(file, f_inode, i_nlink))
		return 0;
	bpf_probe_read_kernel_str(name, sizeof(name),
				  BPF_CORE_READ(file, f_path.dentry, d_name.name));
	if (BPF_CORE_READ(file, f_inode, i_sb, s_magic) == TMPFS_MAGIC && name[0] == 'm' &&
	    name[1] == 'e' && name[2] == 'm' && name[3] == 'f' && name[4] == 'd' && name[5] == ':')
		return MARK_EXEC_MEMFD | MARK_EXEC_DELETED;
	return MARK_EXEC_DELETED;
}

static __always_inline __u32 names_of_file(struct file *file, __u32 rules)
{
	return names_of_path((unsigned long)BPF_CORE_READ(file, f_path.mnt),
			     (unsigned long)BPF_CORE_READ(file, f_path.dentry), rules);
}

/* Of a path as given, with those of the directory that it begins in. */
static __always_inline __u32 names_of_given(struct task_struct *task, unsigned long path,
					    int directory, __u32 rules)
{
	__u32 found = names_of_words(path, rules);

	if (is_relative(path)) {
		struct base base = base_of(task, directory);

		found |= names_of_path((unsigned long)base.mount, (unsigned long)base.dentry,
				       rules) &
			 ((1 << NAME_CLASS_SHIFT) - 1);
	}
	return found;
}

/* What of a call about files somebody wants to hear of: bits of enum mark. Counts what was opened.
 */
__noinline __u32 marks_of_file_call(struct run_entry *run, struct run_counts *counts, long nr,
				    long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	__u8 kind = file_calls[nr & (SYSCALL_SLOTS - 1)];
	__u32 found = 0, marks = 0, use = NAME_WRITE;

	/* Where it goes is no file's content, and a relative name would be taken from there. */
	if (!run || !counts || nr == NR_CHDIR || nr == NR_CHROOT)
		return 0;
	if (run->guarded && result == -EPERM && was_refused(nr))
		return 0;
	if (nr == NR_EXECVE || nr == NR_EXECVEAT) {
		/* One that succeeds is on_exec's, and of others only what was forbidden is of
		 * interest: shells and execvp(3) try every directory. */
		if (result != -EACCES && result != -EPERM)
			return 0;
		use = NAME_EXEC;
		if (nr == NR_EXECVEAT && (int)regs->di >= 0)
			marks = marks_of_program(file_of(task, (int)regs->di));
	}
	if (kind & OPENS && result >= 0) {
		struct file *file = file_of(task, result);

		if (!(BPF_CORE_READ(file, f_mode) & FMODE_WRITE))
			use = NAME_READ;
		found = names_of_file(file, run->rules);
		count_open(counts, found, use == NAME_WRITE);
	} else if (kind & BY_DESCRIPTOR) {
		if (run->wake & MARK_NAME)
			found = names_of_file(file_of(task, (int)regs->di), run->rules);
	} else if (run->wake & MARK_NAME) {
		if (kind & OPENS &&
		    !(open_flags(regs, nr) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)))
			use = NAME_READ;
		found = names_of_given(task, first_path(regs, kind), first_directory(regs, nr),
				       run->rules);
		if (kind & 0x70)
			found |= names_of_given(task, second_path(regs, kind),
						second_directory(regs, nr), run->rules);
	}
	if (found & NAME_LONG)
		marks |= MARK_LONG;
	if (found & use)
		marks |= MARK_NAME;
	if (result >= 0 && (nr == NR_UNLINK || nr == NR_UNLINKAT || nr == NR_RMDIR))
		marks |= MARK_UNLINK;
	return marks & run->wake ? marks & (run->wake | MARK_LONG) : 0;
}

/* `marks` is what marks_of_file_call() said. Called beside it, not around it: frames add up. */
__noinline int on_file_call(struct run_entry *run, struct run_counts *counts, __u64 cgroup,
			    __u32 marks, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	long nr = number_of(regs);
	__u8 kind = file_calls[nr & (SYSCALL_SLOTS - 1)];

	if (!run || !counts)
		return 0;
	if (marks) {
		if (marks & MARK_LONG)
			note_long_file(run, counts, task, regs, cgroup, nr, kind, result, marks);
		else
			note_file(run, counts, task, regs, cgroup, nr, kind, result, marks);
		if (marks & run->kill)
			doom(run);
	} else if ((nr != NR_EXECVE && nr != NR_EXECVEAT) || result < 0) {
		record_file(counts, task, regs, cgroup, nr, kind, result);
	}
	return 0;
}

#endif
