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

/* The current task's: by its group's ancestor at our depth, so that groups nested below a run's
 * stay inside. By a helper: the verifier takes a millisecond for every pointer that is followed. */
static __always_inline struct run_entry *run_of_current(__u64 *id)
{
	*id = bpf_get_current_ancestor_cgroup_id((int)group_level);
	return *id ? bpf_map_lookup_elem(&runs, id) : 0;
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

/* The number of a task in its own pid namespace. */
static __always_inline __u32 number_in(struct pid *pid)
{
	/* Bounded for the verifier of 6.1, in 64 bits; namespaces nest 32 deep at most. */
	__u64 level = BPF_CORE_READ(pid, level);
	int nr = 0;

	asm volatile("" : "+r"(level));
	level &= 63;
	/* numbers[] has one element per level; its size is not known to the compiler. */
	bpf_core_read(&nr, sizeof(nr),
		      (void *)pid + bpf_core_field_offset(struct pid, numbers) +
			      level * bpf_core_type_size(struct upid) +
			      bpf_core_field_offset(struct upid, nr));
	return (__u32)nr;
}

static __always_inline __u32 own_number(struct task_struct *task)
{
	return number_in(BPF_CORE_READ(task, thread_pid));
}

/* Of the current task: its thread's number below, its process's above. */
__noinline __u64 own_numbers(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	/* Followed, not read by a helper: that is for every call of a run that is traced in full.
	 */
	__u32 tid = number_in(task->thread_pid);

	if (task->pid == task->tgid)
		return (__u64)tid << 32 | tid;
	return (__u64)own_number(BPF_CORE_READ(task, group_leader)) << 32 | tid;
}

static __always_inline void fill_head(struct record_header *head, __u64 cgroup, __u16 type,
				      __u16 size)
{
	__u64 numbers = own_numbers();

	head->time_ns = bpf_ktime_get_ns();
	head->cgroup = cgroup;
	head->tid = (__u32)numbers;
	head->pid = (__u32)(numbers >> 32);
	head->type = type;
	head->size = size;
	head->host_tid = (__u32)bpf_get_current_pid_tgid();
}

#endif
