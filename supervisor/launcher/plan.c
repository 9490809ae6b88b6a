// SPDX-License-Identifier: Apache-2.0
#include "plan.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPS	    512
#define MAX_STRINGS (1u << 20)
#define MAX_FILTER  4096

struct cursor {
	const uint8_t *at;
	size_t left;
};

static bool take(struct cursor *c, void *out, size_t size)
{
	if (c->left < size)
		return false;
	memcpy(out, c->at, size);
	c->at += size;
	c->left -= size;
	return true;
}

/* A string is its length (without the NUL), its bytes, and a NUL; a NUL inside is malformed. */
static const char *take_string(struct cursor *c)
{
	uint32_t length;
	const char *text;

	if (!take(c, &length, sizeof(length)) || length >= c->left)
		return NULL;
	text = (const char *)c->at;
	if (strnlen(text, (size_t)length + 1) != length)
		return NULL;
	c->at += (size_t)length + 1;
	c->left -= (size_t)length + 1;
	return text;
}

static bool to_fd(int32_t *index, const int *fds, size_t fd_count)
{
	if (*index == -1)
		return true;
	if (*index < 0 || (size_t)*index >= fd_count)
		return false;
	*index = fds[*index];
	return true;
}

static char **take_strings(struct cursor *c, uint32_t count)
{
	char **list = calloc((size_t)count + 1, sizeof(*list));

	for (uint32_t i = 0; list && i < count; i++) {
		/* execve(2) wants them without const and does not write to them. */
		list[i] = (char *)(uintptr_t)take_string(c);
		if (!list[i]) {
			free(list);
			errno = EBADMSG;
			return NULL;
		}
	}
	return list;
}

static int take_ops(struct plan *plan, struct cursor *c, const int *fds, size_t fd_count)
{
	unsigned int mounts = 0;

	plan->ops = calloc((size_t)plan->w.op_count + 1, sizeof(*plan->ops));
	if (!plan->ops)
		return ENOMEM;
	for (uint32_t i = 0; i < plan->w.op_count; i++) {
		struct op *op = &plan->ops[i];

		if (!take(c, &op->w, sizeof(op->w)))
			return EBADMSG;
		op->target = take_string(c);
		op->source = take_string(c);
		if (!op->target || !op->source || op->target[0] != '/')
			return EBADMSG;
		if (op->w.kind < OP_MKDIR || op->w.kind > OP_DEVICE ||
		    !to_fd(&op->w.fd, fds, fd_count))
			return EBADMSG;
		if (op->w.kind == OP_MOUNT && op->w.fd < 0)
			return EBADMSG;
		if (op->w.kind == OP_TEMPLATE &&
		    (strchr(op->source, '/') || op->source[0] == '.' || !op->source[0]))
			return EBADMSG;
		if (op->w.kind == OP_MOUNT && ++mounts > MAX_MOUNTS)
			return E2BIG;
	}
	return 0;
}

static int parse(struct plan *plan, struct cursor *c, const int *fds, size_t fd_count)
{
	struct plan_wire *w = &plan->w;
	int error;

	if (!take(c, w, sizeof(*w)) || w->magic != PROTOCOL_MAGIC)
		return EBADMSG;
	if (w->v1_count > 8 || w->rlimit_count > 16 || w->filter_count > MAX_FILTER ||
	    w->op_count > MAX_OPS || w->landlock_count > MAX_OPS || w->argc > MAX_STRINGS ||
	    w->envc > MAX_STRINGS)
		return E2BIG;
	if (!w->argc || w->host_uid == UINT32_MAX || w->host_gid == UINT32_MAX ||
	    w->inner_uid == UINT32_MAX || w->inner_gid == UINT32_MAX)
		return EBADMSG;
	if (!to_fd(&w->fd_stdin, fds, fd_count) || !to_fd(&w->fd_stdout, fds, fd_count) ||
	    !to_fd(&w->fd_stderr, fds, fd_count) || !to_fd(&w->fd_tmpfs, fds, fd_count) ||
	    !to_fd(&w->fd_cgroup, fds, fd_count))
		return EBADMSG;
	if (w->fd_stdin < 0 || w->fd_stdout < 0 || w->fd_stderr < 0 || w->fd_cgroup < 0)
		return EBADMSG;
	if ((w->flags & PLAN_MOUNT_NS) ? w->fd_tmpfs < 0 : w->op_count > 0)
		return EBADMSG;

	for (uint32_t i = 0; i < w->v1_count; i++) {
		if (!take(c, &plan->v1_fds[i], sizeof(int32_t)) ||
		    !to_fd(&plan->v1_fds[i], fds, fd_count) || plan->v1_fds[i] < 0)
			return EBADMSG;
	}
	if (!take(c, plan->rlimits, w->rlimit_count * sizeof(plan->rlimits[0])))
		return EBADMSG;
	if (w->filter_count) {
		plan->filter = calloc(w->filter_count, sizeof(*plan->filter));
		if (!plan->filter)
			return ENOMEM;
		if (!take(c, plan->filter, w->filter_count * sizeof(*plan->filter)))
			return EBADMSG;
	}
	plan->hostname = take_string(c);
	plan->cwd = take_string(c);
	if (!plan->hostname || !plan->cwd)
		return EBADMSG;
	error = take_ops(plan, c, fds, fd_count);
	if (error)
		return error;
	plan->landlock = calloc((size_t)w->landlock_count + 1, sizeof(*plan->landlock));
	if (!plan->landlock)
		return ENOMEM;
	for (uint32_t i = 0; i < w->landlock_count; i++) {
		if (!take(c, &plan->landlock[i].access, sizeof(uint64_t)))
			return EBADMSG;
		plan->landlock[i].path = take_string(c);
		if (!plan->landlock[i].path || plan->landlock[i].path[0] != '/')
			return EBADMSG;
	}
	plan->argv = take_strings(c, w->argc);
	if (!plan->argv)
		return errno;
	plan->envp = take_strings(c, w->envc);
	if (!plan->envp)
		return errno;
	return c->left ? EBADMSG : 0;
}

int plan_parse(struct plan *plan, const uint8_t *data, size_t size, const int *fds, size_t fd_count)
{
	struct cursor c = {data, size};
	int error;

	memset(plan, 0, sizeof(*plan));
	error = parse(plan, &c, fds, fd_count);
	if (error)
		plan_free(plan);
	return error;
}

void plan_free(struct plan *plan)
{
	free(plan->filter);
	free(plan->ops);
	free(plan->landlock);
	free(plan->argv);
	free(plan->envp);
	memset(plan, 0, sizeof(*plan));
}
