/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SUPERVISOR_SANDBOX_H
#define SUPERVISOR_SANDBOX_H

#include <stdint.h>

#include "plan.h"
#include "protocol.h"

/* Written by the sandbox's init, read by the launcher; shared memory that the program never sees,
 * since exec drops it. */
struct report {
	int32_t stage;
	int32_t index;
	int32_t error;
	int32_t program_status;
	int32_t program_done;
	uint64_t idmap_skipped;
	uint32_t violation_count;
	uint32_t violations_lost;
	struct violation_wire violations[MAX_VIOLATIONS];
};

/* What the child of the launcher works with, beside the plan. */
struct sandbox {
	const struct plan *plan;
	struct report *report;
	int sync_fd;	   /* a pipe: its end of file in the launcher means that the program runs */
	int host_mount_ns; /* where a run without a mount namespace goes */
	const int *idmap_fds; /* per op: a user namespace, or -1 */
	char *title; /* what stands in /proc/1/cmdline: where we are installed is not the run's to
			know */
	size_t title_size;
	int proc_fd; /* a writable /proc of the run, for what must be written there */
};

/* Ends the process after noting the step that failed. */
_Noreturn void sandbox_fail(struct report *report, enum stage stage, int index, int error);

/* The child's whole life: set up, run the program as a child of its own, be its init. */
_Noreturn void sandbox_main(struct sandbox *sandbox);

/* Each of these is one step of sandbox_main; they end the process on failure. */
void root_set_up(struct sandbox *sandbox);
void user_set_up(struct sandbox *sandbox);
void landlock_set_up(struct sandbox *sandbox);
_Noreturn void init_main(struct sandbox *sandbox);

#endif
