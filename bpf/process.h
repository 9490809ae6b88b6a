/* SPDX-License-Identifier: Apache-2.0 */
/* Process life: fork, exec, exit. The first exec of a run is where its trace begins. */
#ifndef SUPERVISOR_PROCESS_H
#define SUPERVISOR_PROCESS_H

#include "syscalls.h"

#define NS_PER_SECOND 1000000000ull
#define CTIME_QUERIED 0x80000000u /* I_CTIME_QUERIED of fs.h, since 6.13 */

static __always_inline __u64 changed_ns(struct file *file)
{
	struct inode *inode = BPF_CORE_READ(file, f_inode);
	struct inode___before_6_11 *newer = (void *)inode;
	struct inode___before_6_6 *old = (void *)inode;

	if (bpf_core_field_exists(inode->i_ctime_sec))
		return (__u64)BPF_CORE_READ(inode, i_ctime_sec) * NS_PER_SECOND +
		       (BPF_CORE_READ(inode, i_ctime_nsec) & ~CTIME_QUERIED);
	if (bpf_core_field_exists(newer->__i_ctime))
		return (__u64)BPF_CORE_READ(newer, __i_ctime.tv_sec) * NS_PER_SECOND +
		       (__u64)BPF_CORE_READ(newer, __i_ctime.tv_nsec);
	return (__u64)BPF_CORE_READ(old, i_ctime.tv_sec) * NS_PER_SECOND +
	       (__u64)BPF_CORE_READ(old, i_ctime.tv_nsec);
}

#define FD_NAME_SIZE 64

struct ending {
	char text[FD_NAME_SIZE];
	int number;
};

static long ending_step(__u32 index, void *context)
{
	struct ending *ending = context;
	char c = ending->text[index & (FD_NAME_SIZE - 1)];

	if (!c)
		return 1;
	if (c == '/')
		ending->number =
			ending->text[(index - 1) & (FD_NAME_SIZE - 1)] == 'd' &&
					ending->text[(index - 2) & (FD_NAME_SIZE - 1)] == 'f'
				? 0
				: -1;
	else if (c < '0' || c > '9')
		ending->number = -1;
	else if (ending->number >= 0)
		ending->number = ending->number * 10 + c - '0';
	return 0;
}

/* The number that "/dev/fd/3" or "/proc/self/fd/3" ends with; -1 where `name` does not. */
__noinline int descriptor_in(unsigned long name)
{
	struct ending ending = {.number = (int)nothing - 1};

	bpf_probe_read_kernel_str(ending.text, sizeof(ending.text), (void *)name);
	bpf_loop(FD_NAME_SIZE, ending_step, &ending, 0);
	return ending.number;
}

static __always_inline __u32 marks_of_exec(struct task_struct *task, struct run_entry *run,
					   struct linux_binprm *bprm)
{
	__u32 marks = MARK_EXEC | marks_of_program(bprm->file);

	for (int fd = 0; fd < 3; fd++) {
		struct file *stream = file_of(task, fd);

		if (stream && is_network_socket(stream))
			marks |= MARK_EXEC_SOCKET;
		if (stream && !fd && (BPF_CORE_READ(stream, f_inode, i_mode) & S_IFMT) == S_IFIFO)
			marks |= MARK_PIPED;
	}
	if (bprm->filename != bprm->interp) {
		int script = descriptor_in((unsigned long)BPF_CORE_READ(bprm, filename));

		marks |= MARK_SCRIPT;
		/* The file is the interpreter's, which reads the script by that name. */
		if (script >= 0)
			marks |= marks_of_program(file_of(task, script));
	}
	if (run->uid && BPF_CORE_READ(task, cred, euid.val) != run->uid)
		marks |= MARK_CREDENTIALS;
	return marks;
}

static __always_inline void fill_argv(char *argv, __u64 room, struct exec_record *record,
				      unsigned long start, unsigned long size)
{
	record->argv_size = 0;
	if (size > room)
		size = room;
	if (size && !bpf_probe_read_user(argv, size & (2 * room - 1), (void *)start))
		record->argv_size = (__u32)size;
}

static __always_inline void fill_exec(struct exec_record *record, const struct run_counts *counts,
				      struct task_struct *task, struct linux_binprm *bprm,
				      __u64 cgroup, __u32 marks, __u16 size)
{
	struct file *file = bprm->file;

	fill_head(&record->head, counts, cgroup, RECORD_EXEC, size);
	record->parent = own_number(BPF_CORE_READ(task, real_parent), counts->pid_depth);
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	if (bpf_probe_read_kernel_str(record->path, sizeof(record->path), bprm->filename) < 0)
		record->path[0] = 0;
	record->marks = marks;
	record->device = BPF_CORE_READ(file, f_inode, i_sb, s_dev);
	record->inode = BPF_CORE_READ(file, f_inode, i_ino);
	record->size = (__u64)BPF_CORE_READ(file, f_inode, i_size);
	record->changed_ns = changed_ns(file);
	record->file_size = resolve(file, record->file);
	record->cwd_size = record->path[0] == '/' ? 0 : fill_base(task, AT_FDCWD, record->cwd);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	struct long_exec_record *longer = 0;
	struct run_counts *counts;
	struct exec_record *record;
	struct run_entry *run;
	unsigned long start, size;
	__u64 cgroup, wakes;
	__u32 marks;

	run = run_of_current(&cgroup);
	if (!run)
		return 0;
	counts = counts_of(run);
	if (!counts)
		return 0;
	if (!counts->pid_depth)
		counts->pid_depth = BPF_CORE_READ(task, thread_pid, level) + 1;
	if (run->level == LEVEL_OFF)
		return 0;
	if (!run->init_tgid)
		run->init_tgid = (__u32)BPF_CORE_READ(task, real_parent, tgid);
	marks = marks_of_exec(task, run, bprm);
	wakes = marks & run->wake ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
	start = BPF_CORE_READ(task, mm, arg_start);
	size = BPF_CORE_READ(task, mm, arg_end) - start;
	if (size > PATH_SIZE)
		longer = reserve_priority(counts, sizeof(*longer));
	if (longer) {
		fill_exec(&longer->exec, counts, task, bprm, cgroup, marks, sizeof(*longer));
		fill_argv(longer->argv, LONG_ARGV_SIZE, &longer->exec, start, size);
		count(&counts->seen);
		bpf_ringbuf_submit(longer, wakes);
	} else {
		record = reserve_priority(counts, sizeof(*record));
		if (record) {
			fill_exec(record, counts, task, bprm, cgroup, marks, sizeof(*record));
			fill_argv(record->argv, PATH_SIZE, record, start, size);
			count(&counts->seen);
			bpf_ringbuf_submit(record, wakes);
		} else {
			count(&counts->dropped);
		}
	}
	if (marks & run->kill)
		doom(run);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	struct run_counts *counts;
	struct fork_record *record;
	struct run_entry *run;
	__u64 cgroup;

	run = run_of_current(&cgroup);
	if (!run || !run->init_tgid || (__u32)parent->tgid == run->init_tgid)
		return 0;
	counts = counts_of(run);
	if (!counts)
		return 0;
	record = reserve_priority(counts, sizeof(*record));
	if (!record) {
		count(&counts->dropped);
		return 0;
	}
	fill_head(&record->head, counts, cgroup, RECORD_FORK, sizeof(*record));
	record->child_tid = own_number(child, counts->pid_depth);
	record->child_pid = own_number(BPF_CORE_READ(child, group_leader), counts->pid_depth);
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	count(&counts->seen);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct run_counts *counts;
	struct exit_record *record;
	struct pt_regs *regs;
	struct run_entry *run;
	__u64 cgroup;
	__u32 abi;
	long nr;

	run = run_of_current(&cgroup);
	if (!run || !run->init_tgid || (__u32)task->tgid == run->init_tgid)
		return 0;
	counts = counts_of(run);
	if (!counts)
		return 0;
	/* -1 where it was in its own code: kernel entries that are no system call leave that. */
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	nr = number_of(regs);
	abi = abi_of(task, nr);
	if (abi == ABI_X86_64 && (nr == NR_EXIT || nr == NR_EXIT_GROUP)) {
		count(&counts->syscalls[nr].succeeded);
		if (run->level == LEVEL_FULL)
			record_syscall(counts, own_numbers(counts->pid_depth), (__u32)task->pid,
				       cgroup, regs, nr, abi, 0);
	}
	record = reserve_priority(counts, sizeof(*record));
	if (!record) {
		count(&counts->dropped);
		return 0;
	}
	fill_head(&record->head, counts, cgroup, RECORD_EXIT, sizeof(*record));
	record->nr = nr < 0 ? -1 : (__s32)nr;
	record->abi = abi;
	record->status = (__u32)task->exit_code;
	record->leader = BPF_CORE_READ(task, signal, live.counter) == 0;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	count(&counts->seen);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

#endif
