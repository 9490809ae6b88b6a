/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SUPERVISOR_LAUNCHER_H
#define SUPERVISOR_LAUNCHER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "plan.h"
#include "protocol.h"
#include "sandbox.h"

#define MAX_RUNS 4096

/* One run, from clone to reap. */
struct run {
	uint64_t id;
	pid_t pid;
	int pidfd;
	int sync_fd; /* a pipe; -1 once the program runs */
	struct report *report;
	struct run *next_free;
};

/* The one launcher of this process. */
struct launcher {
	int control;
	int epoll;
	int host_mount_ns;
	int proc; /* the host's, for /proc/PID/io and id maps */
	struct run runs[MAX_RUNS];
	struct run *free;
	unsigned int used;
	unsigned int alive;
	char *title; /* argv[0], which a run could read in its /proc/1/cmdline */
	size_t title_size;
};
extern struct launcher launcher;

/* Prints what failed, with errno, and ends the launcher and every run with it. */
_Noreturn void die(const char *what);

/* reply.c: `fd` goes along, unless negative. */
void send_reply(struct reply *reply, int fd);
void reply_failed(uint64_t run, enum stage stage, int index, int error);

/* request.c: one packet with its descriptors, which stay the caller's. */
void on_request(const uint8_t *packet, size_t size, const int *fds, size_t fd_count);

/* run.c: a run's life here. */
void run_launch(uint64_t id, const struct plan *plan, const int *idmap_fds);
void run_started(struct run *run);
void run_ended(struct run *run);

/* idmap.c: a user namespace that only serves as a mapping for mount_setattr(2); a descriptor, or -1
 * with errno. */
int idmap_namespace(uint32_t uid, uint32_t gid, uint32_t host_uid, uint32_t host_gid);

#endif
