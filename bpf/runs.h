/* SPDX-License-Identifier: Apache-2.0 */
/* The maps, and which run the current task belongs to. */
#ifndef SUPERVISOR_RUNS_H
#define SUPERVISOR_RUNS_H

#include "rings.h"

#define SIGKILL	 9
#define MAX_RUNS 64 /* the daemon sets its own number before loading */

/* How deep in the v2 tree the groups of runs lie. The daemon sets it after loading: what it sees of
 * its own place may be relative to a cgroup namespace. */
volatile __u32 group_level = 1;

/*
 * Always 0, which the verifier cannot know. What a step of bpf_loop() finds in its context begins
 * with it wherever a branch hangs on it: before Linux 6.7 (commit ab5cfac139ab) one call of a step
 * is looked at, the first, and what that does not reach is taken out of the program.
 */
volatile __u32 nothing;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_RUNS);
	__type(key, __u64);
	__type(value, struct run_entry);
} runs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_RUNS);
	__type(key, __u32);
	__type(value, struct run_counts);
} counts SEC(".maps");

/* The last calls of each run that is not traced in full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_RUNS);
	__type(key, __u32);
	__type(value, struct flight);
} flights SEC(".maps");

/* What names mean to a set of rules, and which calls one asks for. Sets are the daemon's to number.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct name_key);
	__type(value, __u32);
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct call_key);
	__type(value, __u32);
} calls SEC(".maps");

/* By thread: the number of the call that the guard has refused and told of (guard.h), until it
 * returns. Not told again then, by the name that its caller gave. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} refused SEC(".maps");

/* Whether the guard has told of this call, by the names of what it was really about. */
static __always_inline int was_refused(long nr)
{
	__u32 tid = (__u32)bpf_get_current_pid_tgid();
	__u32 *told = bpf_map_lookup_elem(&refused, &tid);

	if (!told || *told != (__u32)nr)
		return 0;
	bpf_map_delete_elem(&refused, &tid);
	return 1;
}

/* The current task's: by its group's ancestor at our depth, so that groups nested below a run's
 * stay inside. */
static __always_inline struct run_entry *run_of_current(__u64 *id)
{
	*id = bpf_get_current_ancestor_cgroup_id((int)group_level);
	return *id ? bpf_map_lookup_elem(&runs, id) : 0;
}

/*
 * The same for every system call of the host: pointers are followed, not read by a helper. A call
 * of one costs up to 30 ns where returns are guarded; a pointer costs the verifier a millisecond.
 */
static __always_inline struct run_entry *run_of(struct task_struct *task, __u64 *id)
{
	struct cgroup *group = task->cgroups->dfl_cgrp;
	int below = group->level - (int)group_level;

	if (below < 0)
		return 0;
	*id = below ? bpf_get_current_ancestor_cgroup_id((int)group_level) : group->kn->id;
	return bpf_map_lookup_elem(&runs, id);
}

static __always_inline struct run_counts *counts_of(const struct run_entry *run)
{
	__u32 slot = run->slot;

	return bpf_map_lookup_elem(&counts, &slot);
}

/* Whether one more may be told at once: a run that makes thousands must not crowd out the others.
 */
static __always_inline int is_first(struct run_entry *run)
{
	if (run->noted >= NOTED_MAX)
		return 0;
	__sync_fetch_and_add(&run->noted, 1);
	return 1;
}

static __always_inline __u64 wakes(const struct run_entry *run)
{
	return run->noted < NOTED_MAX ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP;
}

/* Room for what a rule has asked for, told at once if it may be; NULL, which is counted. */
static __always_inline void *reserve_note(struct run_entry *run, struct run_counts *counts,
					  const __u64 size)
{
	void *record = 0;

	if (is_first(run))
		record = reserve_priority(counts, size);
	if (!record)
		record = reserve_details(counts, size);
	if (!record) {
		count(&counts->dropped);
		count(&counts->unnoted);
	}
	return record;
}

/* The end of the run: the current task's at once, every other's at its next system call. */
static __always_inline void doom(struct run_entry *run)
{
	run->doomed = 1;
	bpf_send_signal(SIGKILL);
}

/* The kernel takes the lower half of the register for the call; what is above it means nothing. */
static __always_inline long number_of(const struct pt_regs *regs)
{
	return (int)regs->orig_ax;
}

/* The number of a task in the run's pid namespace, whatever namespaces it has made below that. */
static __always_inline __u32 number_at(struct pid *pid, __u64 depth)
{
	__u64 level = depth - 1;
	int nr = 0;

	if (!depth)
		return 0;
	/* Bounded for the verifier of 6.1, in 64 bits; namespaces nest 32 deep at most. */
	asm volatile("" : "+r"(level));
	level &= 63;
	/* numbers[] has one element per level; its size is not known to the compiler. */
	bpf_core_read(&nr, sizeof(nr),
		      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			      level * bpf_core_type_size(struct upid) +
			      bpf_core_field_offset(struct upid, nr));
	return (__u32)nr;
}

static __always_inline __u32 own_number(struct task_struct *task, __u64 depth)
{
	return number_at(BPF_CORE_READ(task, thread_pid), depth);
}

/* For every system call of a run: no helper is called where the run's namespace is one of the
 * first. */
static __always_inline __u32 own_number_followed(struct task_struct *task, __u64 depth)
{
	struct pid *pid = task->thread_pid;

	/* An array without a size (since 6.6) is one that the verifier lets us look into. */
	if (!bpf_core_field_size(pid->numbers)) {
		if (depth == 2)
			return (__u32)pid->numbers[1].nr;
		if (depth == 3)
			return (__u32)pid->numbers[2].nr;
	}
	return number_at(pid, depth);
}

/* Of the current task: its thread's number below, its process's above. */
static __always_inline __u64 own_numbers_followed(struct task_struct *task, __u64 depth)
{
	__u32 tid = own_number_followed(task, depth);
	__u32 pid = task->pid == task->tgid ? tid : own_number_followed(task->group_leader, depth);

	return (__u64)pid << 32 | tid;
}

__noinline __u64 own_numbers(__u64 depth)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u32 tid = own_number(task, depth), pid = tid;

	if (task->pid != task->tgid)
		pid = own_number(BPF_CORE_READ(task, group_leader), depth);
	return (__u64)pid << 32 | tid;
}

static __always_inline void fill_head_for(struct record_header *head, __u64 cgroup, __u64 numbers,
					  __u32 host_tid, __u16 type, __u16 size)
{
	head->time_ns = bpf_ktime_get_ns();
	head->cgroup = cgroup;
	head->tid = (__u32)numbers;
	head->pid = (__u32)(numbers >> 32);
	head->type = type;
	head->size = size;
	head->host_tid = host_tid;
}

static __always_inline void fill_head(struct record_header *head, const struct run_counts *counts,
				      __u64 cgroup, __u16 type, __u16 size)
{
	fill_head_for(head, cgroup, own_numbers(counts->pid_depth),
		      (__u32)bpf_get_current_pid_tgid(), type, size);
}

#endif
