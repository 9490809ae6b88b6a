// SPDX-License-Identifier: Apache-2.0
/*
 * Landlock, landlock(7): a second opinion on what may be written and executed, and no signals or
 * abstract sockets beyond the run. The plan names only rights that the host's ABI has.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "sandbox.h"

#define LANDLOCK_RULE_PATH_BENEATH 1
/* What can be granted on something that is not a directory: execute, write, read, truncate, ioctl.
 */
#define FILE_RIGHTS ((1ull << 0) | (1ull << 1) | (1ull << 2) | (1ull << 14) | (1ull << 15))

struct ruleset_attr {
	uint64_t handled_access_fs;
	uint64_t handled_access_net;
	uint64_t scoped;
};

struct path_beneath_attr {
	uint64_t allowed_access;
	int32_t parent_fd;
} __attribute__((packed));

void landlock_set_up(struct sandbox *sandbox)
{
	const struct plan *plan = sandbox->plan;
	struct ruleset_attr attr = {
		.handled_access_fs = plan->w.landlock_fs,
		.handled_access_net = plan->w.landlock_net,
		.scoped = plan->w.landlock_scoped,
	};
	size_t size = attr.scoped ? sizeof(attr) : attr.handled_access_net ? 16 : 8;
	int ruleset;

	if (!attr.handled_access_fs)
		return;
	ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, size, 0);
	if (ruleset < 0)
		sandbox_fail(sandbox->report, STAGE_LANDLOCK, -1, errno);
	for (uint32_t i = 0; i < plan->w.landlock_count; i++) {
		struct path_beneath_attr rule = {.allowed_access = plan->landlock[i].access};
		struct stat st;

		rule.parent_fd = open(plan->landlock[i].path, O_PATH | O_CLOEXEC);
		if (rule.parent_fd < 0 || fstat(rule.parent_fd, &st))
			sandbox_fail(sandbox->report, STAGE_LANDLOCK, (int)i, errno);
		if (!S_ISDIR(st.st_mode))
			rule.allowed_access &= FILE_RIGHTS;
		if (rule.allowed_access &&
		    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0))
			sandbox_fail(sandbox->report, STAGE_LANDLOCK, (int)i, errno);
		close(rule.parent_fd);
	}
	if (syscall(SYS_landlock_restrict_self, ruleset, 0))
		sandbox_fail(sandbox->report, STAGE_LANDLOCK, -2, errno);
	close(ruleset);
}
