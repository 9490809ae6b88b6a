/* forbidden NAME: one system call with an effect that can be seen, raw, in a directory of the host's at /shared. A counter in
 * /shared/counter says how far this thread came: 1 before the call, 2 after it. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define FILE_AT "/shared/file"

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static int listener(int type, int *port)
{
	struct sockaddr_in address = loopback(0);
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, type, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) || (type == SOCK_STREAM && listen(fd, 8)) ||
	    getsockname(fd, (struct sockaddr *)&address, &size))
		exit(9);
	*port = ntohs(address.sin_port);
	return fd;
}

/* A child that waits to be signalled; its death shows in the counter file's second word. */
static pid_t sleeper(void)
{
	pid_t pid = fork();

	if (!pid) {
		pause();
		_exit(0);
	}
	return pid;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	/* By whichever of the two is not to be tried. */
	int counter_fd = (int)(strcmp(name, "open") ? syscall(SYS_open, "/shared/counter", O_RDWR) :
						     open("/shared/counter", O_RDWR));
	volatile unsigned int *counter = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, counter_fd, 0);
	struct timespec times[2] = {{1000000000, 0}, {1000000000, 0}};
	struct rlimit limit = {5, 5};
	struct sockaddr_in address;
	struct sockaddr_un local = {.sun_family = AF_UNIX, .sun_path = "/shared/socket"};
	char byte;
	long rc = -1;
	int fd = -1, port = 0;

	if (counter_fd < 0 || counter == MAP_FAILED)
		return 8;
	/* What the call needs comes first: only the call itself is forbidden. */
	if (!strcmp(name, "connect") || !strcmp(name, "sendto"))
		fd = listener(!strcmp(name, "connect") ? SOCK_STREAM : SOCK_DGRAM, &port);
	if (!strcmp(name, "ftruncate") || !strcmp(name, "fchmod") || !strcmp(name, "fallocate") || !strcmp(name, "write") ||
	    !strcmp(name, "pwrite64"))
		fd = open(FILE_AT, O_RDWR);
	if (!strcmp(name, "bind"))
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
	address = loopback(port);
	*counter = 1;
#define CALL(call, ...)            \
	if (!strcmp(name, #call))  \
		rc = syscall(SYS_##call, ##__VA_ARGS__)
	CALL(unlink, FILE_AT);
	CALL(unlinkat, AT_FDCWD, FILE_AT, 0);
	CALL(mkdir, "/shared/made", 0755);
	CALL(mkdirat, AT_FDCWD, "/shared/made", 0755);
	CALL(rmdir, "/shared/directory");
	CALL(open, "/shared/made", O_CREAT | O_WRONLY, 0644);
	CALL(openat, AT_FDCWD, "/shared/made", O_CREAT | O_WRONLY, 0644);
	CALL(creat, "/shared/made", 0644);
	CALL(rename, FILE_AT, "/shared/made");
	CALL(renameat2, AT_FDCWD, FILE_AT, AT_FDCWD, "/shared/made", 0);
	CALL(link, FILE_AT, "/shared/made");
	CALL(symlink, "/etc/passwd", "/shared/made");
	CALL(chmod, FILE_AT, 0600);
	CALL(fchmod, fd, 0600);
	CALL(truncate, FILE_AT, 0);
	CALL(ftruncate, fd, 0);
	CALL(utimensat, AT_FDCWD, FILE_AT, times, 0);
	CALL(setxattr, FILE_AT, "user.x", "x", 1, 0);
	CALL(mknod, "/shared/made", S_IFIFO | 0644, 0);
	CALL(write, fd, "XXXX", 4);
	CALL(pwrite64, fd, "XXXX", 4, 0);
	CALL(bind, fd, &local, sizeof(local));
	CALL(setrlimit, RLIMIT_NOFILE, &limit);
	if (!strcmp(name, "connect")) {
		int to = socket(AF_INET, SOCK_STREAM, 0);

		CALL(connect, to, &address, sizeof(address));
		if (!rc && accept(fd, NULL, NULL) >= 0)
			close(open("/shared/made", O_CREAT | O_WRONLY, 0644));
	}
	if (!strcmp(name, "sendto")) {
		int from = socket(AF_INET, SOCK_DGRAM, 0);

		CALL(sendto, from, "x", 1, 0, &address, sizeof(address));
		if (recv(fd, &byte, 1, MSG_DONTWAIT) == 1)
			close(open("/shared/made", O_CREAT | O_WRONLY, 0644));
	}
	if (!strcmp(name, "kill")) {
		pid_t child = sleeper();

		CALL(kill, child, SIGKILL);
		if (waitpid(child, NULL, 0) == child)
			close(open("/shared/made", O_CREAT | O_WRONLY, 0644));
	}
	CALL(mount, "none", "/tmp", "tmpfs", 0, NULL);
	CALL(umount2, "/tmp", MNT_DETACH);
	CALL(ptrace, PTRACE_TRACEME, 0, 0, 0);
	CALL(bpf, 0, NULL, 0);
	CALL(unshare, CLONE_NEWUSER);
	CALL(setns, counter_fd, 0);
	CALL(io_uring_register, -1, 0, NULL, 0);
	CALL(keyctl, 0, -3, 1);
	CALL(userfaultfd, 0);
	CALL(perf_event_open, NULL, 0, -1, -1, 0);
	CALL(process_vm_writev, getppid(), NULL, 0, NULL, 0, 0);
	CALL(init_module, NULL, 0, "");
	CALL(kexec_load, 0, 0, NULL, 0);
	CALL(open_by_handle_at, 0, NULL, 0);
	CALL(reboot, 0, 0, 0, NULL);
	CALL(swapon, FILE_AT, 0);
	CALL(acct, FILE_AT);
	CALL(settimeofday, NULL, NULL);
	*counter = 2;
	printf("%s %ld %d\n", name, rc, rc < 0 ? errno : 0);
	return 0;
}
