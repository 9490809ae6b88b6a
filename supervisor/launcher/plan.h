/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SUPERVISOR_PLAN_H
#define SUPERVISOR_PLAN_H

#include <linux/filter.h>
#include <stddef.h>
#include <stdint.h>

#include "protocol.h"

struct op {
	struct op_wire w;
	const char *target;
	const char *source;
};

struct landlock_rule {
	uint64_t access;
	const char *path;
};

/* A plan, checked: every index is within the descriptors sent, every string ends and lies within
 * the buffer. */
struct plan {
	struct plan_wire w;
	int v1_fds[8];
	struct rlimit_wire rlimits[16];
	struct sock_filter *filter;
	const char *hostname;
	const char *cwd;
	struct op *ops;
	struct landlock_rule *landlock;
	char **argv;
	char **envp;
};

/*
 * Reads a plan out of `data`, which must outlive it and is not changed. `fds` are the descriptors
 * sent along; indices become descriptors. Returns 0, or a positive errno: EBADMSG malformed, E2BIG
 * over a bound, ENOMEM.
 */
int plan_parse(struct plan *plan, const uint8_t *data, size_t size, const int *fds,
	       size_t fd_count);
void plan_free(struct plan *plan);

#endif
