/* SPDX-License-Identifier: Apache-2.0 */
/* What the probes tell the daemon, and how much of each ring one run may take. */
#ifndef SUPERVISOR_RINGS_H
#define SUPERVISOR_RINGS_H

#include "records.h"

#define PRIORITY_SIZE (16 << 20)
#define DETAILS_SIZE  (8 << 20)
#define BULK_SIZE     (32 << 20)

/* Few and precious: what a process is, and what is forbidden. Nothing else shares it. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PRIORITY_SIZE);
} priority SEC(".maps");

/* What a program can cause as fast as it can call: files, addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, DETAILS_SIZE);
} details SEC(".maps");

/* Every event of runs traced in full. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, BULK_SIZE);
} bulk SEC(".maps");

#define SHARE	  8
#define UNCHECKED (64 << 10) /* bytes: below these nobody's part of a ring is looked at */

static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

/*
 * Room for a record of a run, or NULL. What of one run waits to be read takes at most SHARE times
 * what is free: one that floods has eight ninths of a ring, two have eight seventeenths each, and
 * there is always room for those that do not (A. K. Choudhury, E. L. Hahne: Dynamic queue length
 * thresholds for shared-memory packet switches, 1998).
 */
static __always_inline void *try_reserve(void *ring, enum ring which, __u64 ring_size,
					 struct run_counts *counts, const __u64 size)
{
	/* What was read of it is the daemon's to say, at any time. */
	__u64 waiting = counts->given[which] - *(volatile __u64 *)&counts->taken[which];
	void *record;

	if (waiting > UNCHECKED &&
	    waiting > SHARE * (ring_size - bpf_ringbuf_query(ring, BPF_RB_AVAIL_DATA)))
		return 0;
	record = bpf_ringbuf_reserve(ring, size, 0);
	if (record)
		__sync_fetch_and_add(&counts->given[which], size + RECORD_OVERHEAD);
	return record;
}

#define reserve_priority(counts, size) \
	try_reserve(&priority, RING_PRIORITY, PRIORITY_SIZE, counts, size)
#define reserve_details(counts, size) \
	try_reserve(&details, RING_DETAILS, DETAILS_SIZE, counts, size)
#define reserve_bulk(counts, size) try_reserve(&bulk, RING_BULK, BULK_SIZE, counts, size)

#endif
