/* SPDX-License-Identifier: Apache-2.0 */
/* System calls: counted always, recorded one by one where a run is traced in full. */
#ifndef SUPERVISOR_SYSCALLS_H
#define SUPERVISOR_SYSCALLS_H

#include "sockets.h"

#define NR_RT_SIGRETURN 15
#define NR_EXIT		60
#define NR_EXIT_GROUP	231
#define NR_CLONE	56
#define NR_VFORK	58
#define NR_CLONE3	435
#define MAX_ERRNO	4095

#define NR_FORK_I386  2
#define NR_CLONE_I386 120
#define NR_VFORK_I386 190

static __always_inline int is_fork(long nr, __u32 abi)
{
	if (abi == ABI_I386)
		return nr == NR_FORK_I386 || nr == NR_CLONE_I386 || nr == NR_VFORK_I386 ||
		       nr == NR_CLONE3;
	nr &= ~(long)X32_SYSCALL_BIT;
	return (nr >= NR_CLONE && nr <= NR_VFORK) || nr == NR_CLONE3;
}

static __always_inline struct syscall_count *count_of(struct run_counts *counts, long nr, __u32 abi)
{
	__u32 index =
		nr >= 0 && nr < SYSCALL_OTHER && abi == ABI_X86_64 ? (__u32)nr : SYSCALL_OTHER;

	return &counts->syscalls[index & (SYSCALL_SLOTS - 1)];
}

static __always_inline void record_syscall(struct run_counts *counts, __u64 numbers, __u32 host_tid,
					   __u64 cgroup, struct pt_regs *regs, long nr, __u32 abi,
					   long result)
{
	struct syscall_record *record = reserve_bulk(counts, sizeof(*record));

	if (!record) {
		count(&counts->dropped);
		return;
	}
	fill_head_for(&record->head, cgroup, numbers, host_tid, RECORD_SYSCALL, sizeof(*record));
	record->result = result;
	record->nr = (__u32)nr;
	record->abi = abi;
	record->args[0] = regs->di;
	record->args[1] = regs->si;
	record->args[2] = regs->dx;
	record->args[3] = regs->r10;
	record->args[4] = regs->r8;
	record->args[5] = regs->r9;
	/* The reader looks by itself; waking it costs more than the record. */
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/* Reading the clock costs as much as all else that is kept of a call, so that a burst shares it. */
static __always_inline __u64 stamp_of(struct run_counts *counts, __u64 place, long nr)
{
	__u32 index = nr & (SYSCALL_SLOTS - 1);
	__u64 tick = bpf_jiffies64();

	if (tick != counts->tick || !(place & (FLIGHT_STAMPED - 1)) || file_calls[index] ||
	    noticed_calls[index] || is_socket_call(nr)) {
		counts->stamp = bpf_ktime_get_ns();
		counts->tick = tick;
	}
	return counts->stamp;
}

/* A run's own ring in memory that the daemon maps: no reservation, no lock, nothing to be read. */
static __always_inline void remember(struct run_entry *run, struct run_counts *counts,
				     __u64 numbers, struct pt_regs *regs, long nr, __u32 abi,
				     long result)
{
	struct flight_call *call;
	struct flight *flight;
	__u64 place;
	__u32 slot;

	slot = run->slot;
	place = __sync_fetch_and_add(&counts->flown, 1);
	flight = bpf_map_lookup_elem(&flights, &slot);
	if (!flight)
		return;
	call = &flight->calls[place & (FLIGHT_CALLS - 1)];
	call->place = 0;
	call->time_ns = stamp_of(counts, place, nr);
	call->result = result;
	call->args[0] = regs->di;
	call->args[1] = regs->si;
	call->args[2] = regs->dx;
	call->args[3] = regs->r10;
	call->args[4] = regs->r8;
	call->args[5] = regs->r9;
	call->tid = (__u32)numbers;
	call->pid = (__u32)(numbers >> 32);
	call->nr = (__u32)nr;
	call->abi = abi;
	call->place = place + 1;
}

/*
 * Only the way out is watched: it shows every call with its result, what seccomp refused included,
 * at half the cost of both ways. The number of a task that dies inside a call is on_exit's.
 */
SEC("tp_btf/sys_exit")
int BPF_PROG(on_sys_exit, struct pt_regs *regs, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct syscall_count *counter;
	struct run_counts *counts;
	struct run_entry *run;
	__u64 cgroup, numbers;
	__u32 abi, marks;
	long nr;

	run = run_of(task, &cgroup);
	if (!run || !run->init_tgid || (__u32)task->tgid == run->init_tgid)
		return 0;
	counts = counts_of(run);
	if (!counts)
		return 0;
	/* Pointers are followed here, before the ways part: the verifier walks each of them. */
	numbers = own_numbers_followed(task, counts->pid_depth);
	marks = marks_of_task(run, task);
	nr = number_of(regs);
	/* rt_sigreturn(2) has put back the registers of what the signal interrupted. */
	if (nr == -1)
		nr = NR_RT_SIGRETURN;
	abi = abi_of(task, nr);
	if (!result && is_fork(nr, abi))
		return 0; /* the child's side of the same call */
	counter = count_of(counts, nr, abi);
	count(result < 0 && result >= -MAX_ERRNO ? &counter->failed : &counter->succeeded);
	/* Before the call itself, as what the address hooks tell. */
	if (abi == ABI_X86_64 && is_socket_call(nr))
		note_socket(counts, cgroup, result);
	if (run->level == LEVEL_FULL)
		record_syscall(counts, numbers, (__u32)task->pid, cgroup, regs, nr, abi, result);
	else
		remember(run, counts, numbers, regs, nr, abi, result);
	on_call(run, counts, cgroup, marks, nr, abi, result);
	if (run->doomed)
		bpf_send_signal(SIGKILL);
	return 0;
}

#endif
