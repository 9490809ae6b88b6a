// SPDX-License-Identifier: Apache-2.0
/* What the daemon can ask, checked before anything is done. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher.h"

static void on_launch(uint64_t id, const uint8_t *data, size_t size, const int *fds,
		      size_t fd_count, bool check_only)
{
	struct plan plan;
	int *idmap_fds;
	int error = plan_parse(&plan, data, size, fds, fd_count);
	bool good = true;

	if (error) {
		reply_failed(id, STAGE_PLAN, 0, error);
		return;
	}
	if (check_only) {
		struct reply reply = {.type = REPLY_OK, .run = id};

		send_reply(&reply, -1);
		plan_free(&plan);
		return;
	}
	idmap_fds = malloc(sizeof(int) * ((size_t)plan.w.op_count + 1));
	if (!idmap_fds)
		die("malloc");
	for (uint32_t i = 0; i < plan.w.op_count; i++) {
		const struct op_wire *op = &plan.ops[i].w;

		idmap_fds[i] = -1;
		if (!good || !(op->flags & OP_IDMAP))
			continue;
		idmap_fds[i] = idmap_namespace(op->idmap_uid, op->idmap_gid, plan.w.host_uid,
					       plan.w.host_gid);
		if (idmap_fds[i] < 0) {
			reply_failed(id, STAGE_IDMAP, (int)i, errno);
			good = false;
		}
	}
	if (good)
		run_launch(id, &plan, idmap_fds);
	for (uint32_t i = 0; i < plan.w.op_count; i++) {
		if (idmap_fds[i] >= 0)
			close(idmap_fds[i]);
	}
	free(idmap_fds);
	plan_free(&plan);
}

static void on_template(uint64_t id, const uint8_t *name, size_t size, const int *fds,
			size_t fd_count)
{
	struct reply reply = {.type = REPLY_OK, .run = id};
	char path[64];
	struct stat st;
	int rc = -1;

	if (size < 1 || size > 32 || memchr(name, '/', size) || memchr(name, 0, size) ||
	    name[0] == '.' || fd_count != 1) {
		reply_failed(id, STAGE_TEMPLATE, 0, EBADMSG);
		return;
	}
	snprintf(path, sizeof(path), "/t/%.*s", (int)size, (const char *)name);
	if (!fstat(fds[0], &st)) {
		rc = S_ISDIR(st.st_mode) ? mkdir(path, 0755) : mknod(path, S_IFREG | 0644, 0);
		if (!rc)
			rc = move_mount(fds[0], "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH);
	}
	if (rc)
		reply_failed(id, STAGE_TEMPLATE, 1, errno);
	else
		send_reply(&reply, -1);
}

static void on_plan_in_fd(const struct request_header *header, const int *fds, size_t fd_count)
{
	bool check_only = header->type == REQUEST_CHECK;
	struct stat st;
	void *data;

	if (!fd_count || fstat(fds[0], &st) || !S_ISREG(st.st_mode) || st.st_size < 1 ||
	    st.st_size > MAX_PLAN ||
	    (fcntl(fds[0], F_GET_SEALS) & (F_SEAL_WRITE | F_SEAL_SHRINK)) !=
		    (F_SEAL_WRITE | F_SEAL_SHRINK)) {
		reply_failed(header->run, STAGE_PLAN, 1, EBADMSG);
		return;
	}
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fds[0], 0);
	if (data == MAP_FAILED) {
		reply_failed(header->run, STAGE_PLAN, 2, errno);
		return;
	}
	on_launch(header->run, data, (size_t)st.st_size, fds + 1, fd_count - 1, check_only);
	munmap(data, (size_t)st.st_size);
}

void on_request(const uint8_t *packet, size_t size, const int *fds, size_t fd_count)
{
	struct request_header header;

	if (size < sizeof(header)) {
		reply_failed(0, STAGE_REQUEST, 0, EBADMSG);
		return;
	}
	memcpy(&header, packet, sizeof(header));
	packet += sizeof(header);
	size -= sizeof(header);
	if (header.magic != PROTOCOL_MAGIC || header.size != size || header.fd_count != fd_count) {
		reply_failed(header.run, STAGE_REQUEST, 1, EBADMSG);
		return;
	}
	switch (header.type) {
	case REQUEST_LAUNCH:
	case REQUEST_CHECK:
		if (header.flags & REQUEST_PLAN_IN_FD)
			on_plan_in_fd(&header, fds, fd_count);
		else
			on_launch(header.run, packet, size, fds, fd_count,
				  header.type == REQUEST_CHECK);
		break;
	case REQUEST_TEMPLATE:
		on_template(header.run, packet, size, fds, fd_count);
		break;
	case REQUEST_PING: {
		struct reply reply = {.type = REPLY_OK, .run = header.run};

		send_reply(&reply, -1);
		break;
	}
	default:
		reply_failed(header.run, STAGE_REQUEST, 2, ENOSYS);
	}
}
