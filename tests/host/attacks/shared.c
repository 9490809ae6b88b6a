// SPDX-License-Identifier: Apache-2.0
/* What one run could use up for the whole host: kernel budgets that no control group counts. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "attack.h"

/* Every filter attached is compiled into net.core.bpf_jit_limit, one number for the host. */
static long socket_filter(void)
{
	struct sock_filter code[] = { BPF_STMT(BPF_RET | BPF_K, 0xffff) };
	struct sock_fprog program = { 1, code };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program));
}

/* fs.aio-max-nr is one number for the host. */
static long aio(void)
{
	aio_context_t context = 0;

	return syscall(SYS_io_setup, 65536, &context);
}

/* kernel.pty.max is one number for the host. */
static long terminals(void)
{
	int count = 0;

	while (count < 200 && open("/dev/ptmx", O_RDWR | O_NOCTTY) >= 0)
		count++;
	return count < 100 ? -1 : count;
}

/* Bytes that nobody reads, in the buffers of TCP connections over loopback; prints how many MiB they took. */
static long tcp(void)
{
	static char block[1 << 20];
	long taken = 0;
	int server = socket(AF_INET, SOCK_STREAM, 0);
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof(address);
	int big = 1 << 30;

	setsockopt(server, SOL_SOCKET, SO_RCVBUF, &big, sizeof(big));
	bind(server, (struct sockaddr *)&address, sizeof(address));
	listen(server, 512);
	getsockname(server, (struct sockaddr *)&address, &length);
	for (int i = 0; i < 200; i++) {
		int client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		ssize_t n;

		setsockopt(client, SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
		connect(client, (struct sockaddr *)&address, sizeof(address));
		usleep(2000);
		for (int tries = 0; tries < 64; tries++) {
			n = write(client, block, sizeof(block));
			if (n > 0)
				taken += n;
		}
	}
	/* Between a program and its peer some is always in flight; it is the amount that tells. */
	errno = ENOBUFS;
	return taken >> 20 < 200 ? -1 : taken >> 20;
}

int main(int argc, char **argv)
{
	static const struct attempt table[] = {
		{ "socket_filter", socket_filter },
		{ "aio", aio },
		{ "terminals", terminals },
		{ "tcp", tcp },
	};

	signal(SIGPIPE, SIG_IGN);
	return run_attempt(table, COUNT(table), argc, argv);
}
