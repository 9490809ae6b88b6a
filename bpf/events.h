/* SPDX-License-Identifier: Apache-2.0 */
/* What a run's rules ask for of its system calls: noticed here, told at once, and fatal where a
 * number is enough to say so. */
#ifndef SUPERVISOR_EVENTS_H
#define SUPERVISOR_EVENTS_H

#include "files.h"

#define TS_COMPAT	0x0002 /* arch/x86/include/asm/thread_info.h */
#define X32_SYSCALL_BIT 0x40000000

#define ENOSYS 38

#define S_IFMT	 0170000
#define S_IFSOCK 0140000
#define S_IFIFO	 0010000
#define S_ISUID	 0004000
#define AF_INET	 2
#define AF_INET6 10

#define PROT_WRITE 2
#define PROT_EXEC  4

#define MAP_ANONYMOUS 0x20

/* What is looked at of a call's arguments or its result. */
enum noticed {
	NOTICED_DESCRIPTOR = 1, /* its result is one */
	NOTICED_MODE = 2,	/* an argument is a file's mode */
	NOTICED_PROTECT = 3,
	NOTICED_MAP = 4,
	NOTICED_MEMFD = 5,
	NOTICED_IO_URING = 6,
	NOTICED_HOW = 7, /* struct open_how has one */
};

#define MODE_AT(index) (NOTICED_MODE | (index) << 4)

/* By number. */
static const __u8 noticed_calls[SYSCALL_SLOTS] = {
	[2] = MODE_AT(2),	    /* open */
	[9] = NOTICED_MAP,	    /* mmap */
	[10] = NOTICED_PROTECT,	    /* mprotect */
	[32] = NOTICED_DESCRIPTOR,  /* dup */
	[33] = NOTICED_DESCRIPTOR,  /* dup2 */
	[72] = NOTICED_DESCRIPTOR,  /* fcntl */
	[85] = MODE_AT(1),	    /* creat */
	[90] = MODE_AT(1),	    /* chmod */
	[91] = MODE_AT(1),	    /* fchmod */
	[133] = MODE_AT(1),	    /* mknod */
	[257] = MODE_AT(3),	    /* openat */
	[259] = MODE_AT(2),	    /* mknodat */
	[268] = MODE_AT(2),	    /* fchmodat */
	[292] = NOTICED_DESCRIPTOR, /* dup3 */
	[319] = NOTICED_MEMFD,	    /* memfd_create */
	[329] = NOTICED_PROTECT,    /* pkey_mprotect */
	[425] = NOTICED_IO_URING,   /* io_uring_setup */
	[437] = NOTICED_HOW,	    /* openat2 */
	[452] = MODE_AT(2),	    /* fchmodat2 */
};

static __always_inline __u32 abi_of(struct task_struct *task, long nr)
{
	if (task->thread_info.status & TS_COMPAT)
		return ABI_I386;
	return nr & X32_SYSCALL_BIT ? ABI_X32 : ABI_X86_64;
}

static __always_inline int is_network_socket(struct file *file)
{
	struct socket *socket;
	__u16 family;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	family = BPF_CORE_READ(socket, sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6;
}

/* Only what makes a file has a mode among the arguments of open(2). */
#define MAKES_FILE (O_CREAT | TMPFILE)

static __noinline __u32 marks_of_how(unsigned long pointer)
{
	__u64 flags_and_mode[2] = {}; /* as struct open_how begins */

	bpf_probe_read_user(flags_and_mode, sizeof(flags_and_mode), (void *)pointer);
	return flags_and_mode[0] & MAKES_FILE && flags_and_mode[1] & S_ISUID ? MARK_SETUID_BIT : 0;
}

__noinline __u32 marks_of_call(long nr, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	__u8 what = noticed_calls[nr & (SYSCALL_SLOTS - 1)];

	switch (what & 0xf) {
	case NOTICED_DESCRIPTOR:
		if (result >= 0 && result <= 2 && is_network_socket(file_of(task, result)))
			return MARK_SOCKET;
		return 0;
	case NOTICED_MODE:
		if ((nr == NR_OPEN || nr == NR_OPENAT) && !(open_flags(regs, nr) & MAKES_FILE))
			return 0;
		return argument(regs, what >> 4) & S_ISUID ? MARK_SETUID_BIT : 0;
	case NOTICED_HOW:
		return marks_of_how(regs->dx);
	case NOTICED_PROTECT:
		if (result || !(regs->dx & PROT_EXEC))
			return 0;
		return MARK_PROTECT | (regs->dx & PROT_WRITE ? MARK_WX : 0);
	case NOTICED_MAP:
		if (result <= 0 || !(regs->dx & PROT_EXEC))
			return 0;
		if (!(regs->r10 & MAP_ANONYMOUS) &&
		    marks_of_program(file_of(task, (int)regs->r8)) & MARK_EXEC_MEMFD)
			return MARK_MAP_MEMFD | (regs->dx & PROT_WRITE ? MARK_WX : 0);
		return regs->dx & PROT_WRITE ? MARK_WX : 0;
	case NOTICED_MEMFD:
		return MARK_MEMFD;
	case NOTICED_IO_URING:
		return MARK_IO_URING;
	default:
		return 0;
	}
}

__noinline int note_call(struct run_entry *run, struct run_counts *counts, __u64 cgroup,
			 __u64 marks_and_abi, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	struct event_record *record;

	if (!run || !counts)
		return 0;
	record = reserve_note(run, counts, sizeof(*record));
	if (!record)
		return 0;
	fill_head(&record->head, counts, cgroup, RECORD_EVENT, sizeof(*record));
	record->result = result;
	record->nr = (__u32)number_of(regs);
	record->abi = (__u32)(marks_and_abi >> 32);
	record->marks = (__u32)marks_and_abi;
	record->pad = 0;
	record->args[0] = regs->di;
	record->args[1] = regs->si;
	record->args[2] = regs->dx;
	record->args[3] = regs->r10;
	record->args[4] = regs->r8;
	record->args[5] = regs->r9;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	count(&counts->seen);
	bpf_ringbuf_submit(record, wakes(run));
	return 0;
}

static __always_inline int is_wanted(const struct run_entry *run, long nr)
{
	struct call_key key = {.rules = run->rules, .nr = (__u32)nr};

	return bpf_map_lookup_elem(&calls, &key) != 0;
}

static __always_inline __u32 marks_of_task(const struct run_entry *run, struct task_struct *task)
{
	return run->uid && task->cred->euid.val != run->uid ? MARK_CREDENTIALS : 0;
}

/* `marks` are those of the task. */
static __always_inline void on_call(struct run_entry *run, struct run_counts *counts, __u64 cgroup,
				    __u32 marks, long nr, __u32 abi, long result)
{
	if (!run->rules)
		return;
	if (abi == ABI_X86_64 && nr >= 0 && nr < SYSCALL_SLOTS) {
		if (file_calls[nr & (SYSCALL_SLOTS - 1)]) {
			__u32 noted = marks_of_file_call(run, counts, nr, result);

			if (noted || run->level == LEVEL_FULL)
				on_file_call(run, counts, cgroup, noted, result);
		}
		if (noticed_calls[nr & (SYSCALL_SLOTS - 1)])
			marks |= marks_of_call(nr, result);
		if (run->wake & MARK_CALL && is_wanted(run, nr))
			marks |= MARK_CALL;
	}
	if (result == -EPERM || result == -ENOSYS)
		marks |= MARK_REFUSED;
	marks &= run->wake | run->kill;
	if (!marks)
		return;
	note_call(run, counts, cgroup, (__u64)abi << 32 | marks, result);
	if (marks & run->kill)
		doom(run);
}

#endif
