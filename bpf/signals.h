/* SPDX-License-Identifier: Apache-2.0 */
/* Signals to processes of runs that are traced in full, whoever sends them. */
#ifndef SUPERVISOR_SIGNALS_H
#define SUPERVISOR_SIGNALS_H

#include "runs.h"

#define SI_KERNEL	     0x80
#define SEND_SIG_PRIV	     1 /* include/linux/sched/signal.h: instead of a pointer */
#define SENT_BY_KERNEL(info) ((unsigned long)(info) == SEND_SIG_PRIV)

/* The id of another task's group at our depth; 0: it is in none. */
static __always_inline __u64 group_of(struct task_struct *task)
{
	struct cgroup *group = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	int level = BPF_CORE_READ(group, level);
	struct cgroup *ancestor = 0;
	__u64 at = group_level;

	if (level < (int)group_level)
		return 0;
	if (level == (int)group_level)
		return BPF_CORE_READ(group, kn, id);
	bpf_core_read(&ancestor, sizeof(ancestor),
		      (void *)group + bpf_core_field_offset(struct cgroup, ancestors) +
			      at * sizeof(ancestor));
	return BPF_CORE_READ(ancestor, kn, id);
}

SEC("tp_btf/signal_generate")
int BPF_PROG(on_signal, int number, struct kernel_siginfo *info, struct task_struct *task,
	     int group, int generation)
{
	__u64 cgroup = group_of(task);
	struct signal_record *record;
	struct run_counts *counts;
	struct run_entry *run;
	__u64 numbers;

	run = cgroup ? bpf_map_lookup_elem(&runs, &cgroup) : 0;
	if (!run || run->level != LEVEL_FULL || !run->init_tgid ||
	    (__u32)task->tgid == run->init_tgid)
		return 0;
	counts = counts_of(run);
	if (!counts)
		return 0;
	record = reserve_details(counts, sizeof(*record));
	if (!record) {
		count(&counts->dropped);
		return 0;
	}
	/* The head is the receiver's: the sender need not be of the run, nor have sent it itself.
	 */
	numbers = own_number(BPF_CORE_READ(task, group_leader), counts->pid_depth);
	numbers = numbers << 32 | own_number(task, counts->pid_depth);
	fill_head_for(&record->head, cgroup, numbers, (__u32)task->pid, RECORD_SIGNAL,
		      sizeof(*record));
	record->number = (__u32)number;
	record->generation = (__u32)generation;
	record->code = SENT_BY_KERNEL(info) ? SI_KERNEL : 0;
	if ((unsigned long)info > SEND_SIG_PRIV)
		record->code = BPF_CORE_READ(info, si_code);
	record->sender = 0;
	if (record->code <= 0 && bpf_get_current_ancestor_cgroup_id((int)group_level) == cgroup)
		record->sender = (__u32)(own_numbers(counts->pid_depth) >> 32);
	count(&counts->seen);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

#endif
