// SPDX-License-Identifier: Apache-2.0
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "launcher.h"

void send_reply(struct reply *reply, int fd)
{
	struct iovec part = {reply, sizeof(*reply)};
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	reply->magic = PROTOCOL_MAGIC;
	if (fd >= 0) {
		struct cmsghdr *header;

		message.msg_control = control.space;
		message.msg_controllen = sizeof(control.space);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(header), &fd, sizeof(int));
	}
	/* Blocks when the daemon lags: it has then more than enough to read. */
	while (sendmsg(launcher.control, &message, MSG_NOSIGNAL) < 0) {
		if (errno != EINTR)
			return; /* the daemon is gone; the loop will see it */
	}
}

void reply_failed(uint64_t run, enum stage stage, int index, int error)
{
	struct reply reply = {.type = REPLY_FAILED,
			      .run = run,
			      .stage = (int32_t)stage,
			      .index = index,
			      .error = error};

	send_reply(&reply, -1);
}
