/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the daemon and the launcher say to each other over one SOCK_SEQPACKET socket. The Python
 * side is protocol.py; tests/unit/test_protocol.py compares the two. Native byte order: both ends
 * are on one machine.
 */
#ifndef SUPERVISOR_PROTOCOL_H
#define SUPERVISOR_PROTOCOL_H

#include <stdint.h>

#define PROTOCOL_MAGIC 0x31505653u /* "SVP1" */
#define MAX_PACKET     (128u * 1024)
#define MAX_PLAN       (16u * 1024 * 1024)
#define MAX_FDS	       200
#define MAX_MOUNTS     64 /* as many as idmap_skipped has bits */
#define MAX_VIOLATIONS 8

enum request_type {
	REQUEST_LAUNCH = 1,   /* plan in the packet, descriptors beside it */
	REQUEST_TEMPLATE = 2, /* one detached mount, attached as /t/NAME */
	REQUEST_CHECK = 3,    /* parse the plan, launch nothing */
	REQUEST_PING = 4,
};

enum request_flags {
	REQUEST_PLAN_IN_FD =
		1, /* the plan is the content of the first descriptor, a sealed memfd */
};

struct request_header {
	uint32_t magic;
	uint16_t type;
	uint16_t flags;
	uint64_t run;
	uint32_t size; /* bytes of plan, or of the template's name */
	uint32_t fd_count;
};

enum reply_type {
	REPLY_STARTED = 1, /* the program has been executed; the pidfd of its init comes along */
	REPLY_ENDED = 2,   /* the process is gone; everything known about its end */
	REPLY_FAILED = 3,  /* no process was made, or the request was refused */
	REPLY_OK = 4,
};

struct violation_wire {
	uint64_t time_ns; /* CLOCK_REALTIME */
	uint64_t args[6];
	uint32_t arch; /* AUDIT_ARCH_* */
	int32_t nr;
	int32_t pid; /* in the run's own pid namespace */
	char comm[16];
	uint32_t pad;
};

struct reply {
	uint32_t magic;
	uint32_t type;
	uint64_t run;
	int32_t pid;
	/* The first step that failed, with its index where it is one of several; stage 0: none. */
	int32_t stage;
	int32_t index;
	int32_t error;
	/* waitpid(2) status of the program; meaningful with `program_done`. */
	int32_t program_status;
	int32_t program_done;
	/* waitpid(2) status of the sandbox's init. */
	int32_t init_status;
	uint32_t pad;
	/* getrusage(2) of the whole reaped tree. */
	uint64_t user_us;
	uint64_t system_us;
	/* /proc/PID/io of the whole reaped tree; -1: not measured. */
	int64_t read_bytes;
	int64_t write_bytes;
	/* Bit I: the I-th OP_MOUNT is read-only without an idmapped mount, since its file system
	 * has none. */
	uint64_t idmap_skipped;
	uint32_t violation_count;
	uint32_t violations_lost;
	struct violation_wire violations[MAX_VIOLATIONS];
};

enum plan_flags {
	PLAN_PID_NS = 1 << 0,
	PLAN_MOUNT_NS = 1 << 1,
	PLAN_NETWORK_NS = 1 << 2,
	PLAN_IPC_NS = 1 << 3,
	PLAN_UTS_NS = 1 << 4,
	PLAN_CGROUP_NS = 1 << 5,
	PLAN_USER_NS = 1 << 6,
	PLAN_TERMINAL = 1 << 7,
	PLAN_NOTIFY = 1 << 8,  /* the filter returns USER_NOTIF for what must kill */
	PLAN_AS_ROOT = 1 << 9, /* keep uid 0 and its capabilities */
	PLAN_KEYRING = 1 << 10,
	PLAN_NO_NEW_PRIVS = 1 << 11,
	PLAN_MEMFD_NOEXEC = 1 << 12, /* vm.memfd_noexec = 2 in the run's pid namespace */
};

/* Fixed head of a plan; after it, in this order: v1 descriptors, rlimits, filter, hostname, cwd,
 * ops, landlock rules, argv, env. */
struct plan_wire {
	uint32_t magic;
	uint32_t flags;
	uint32_t host_uid;
	uint32_t host_gid;
	uint32_t inner_uid;
	uint32_t inner_gid;
	uint32_t umask;
	int32_t fd_stdin; /* these are indices into the descriptors sent along; -1: none */
	int32_t fd_stdout;
	int32_t fd_stderr;
	int32_t fd_tmpfs;
	int32_t fd_cgroup;
	uint32_t v1_count;
	uint32_t rlimit_count;
	uint32_t filter_count;
	uint32_t op_count;
	uint32_t landlock_count;
	uint32_t argc;
	uint32_t envc;
	int32_t oom_score_adj;
	uint64_t landlock_fs;
	uint64_t landlock_net;
	uint64_t landlock_scoped;
};

struct rlimit_wire {
	uint32_t resource;
	uint32_t pad;
	uint64_t soft;
	uint64_t hard;
};

enum op_kind {
	OP_MKDIR = 1,	 /* target and its parents, mode */
	OP_FILE = 2,	 /* an empty file at target, to mount upon */
	OP_SYMLINK = 3,	 /* target -> source */
	OP_TEMPLATE = 4, /* the template named by source, at target */
	OP_MOUNT = 5,	 /* the detached mount in fd, at target */
	OP_BIND = 6,	 /* source, a directory of the run's own root, at target */
	OP_PROC = 7,	 /* a proc of the run's own pid namespace, at target */
	OP_DEVPTS = 8,	 /* a devpts of its own, at target */
	OP_SETATTR = 9,	 /* mount attributes of what is at target */
	OP_HIDE = 10, /* an empty file or directory, read-only, over target, where target exists */
	OP_DEVICE = 11, /* a character device at target, mode; its numbers are idmap_uid and
			   idmap_gid */
};

enum op_flags {
	OP_OWN = 1 << 0,	    /* what is made belongs to the run's user */
	OP_IDMAP = 1 << 1,	    /* files of idmap_uid:idmap_gid appear as the run's user's */
	OP_IDMAP_OPTIONAL = 1 << 2, /* without idmapping if the file system has none */
	OP_RECURSIVE = 1 << 3,	    /* attributes for the whole tree of mounts */
};

struct op_wire {
	uint32_t kind;
	uint32_t flags;
	int32_t fd;
	uint32_t mode;
	uint64_t attr_set; /* MOUNT_ATTR_* */
	uint32_t idmap_uid;
	uint32_t idmap_gid;
};

/* Where a set-up can fail. Python knows them by these names, lower case, without the prefix. */
enum stage {
	STAGE_NONE = 0,
	STAGE_REQUEST = 1,
	STAGE_PLAN = 2,
	STAGE_IDMAP = 3,
	STAGE_CLONE = 4,
	STAGE_CGROUP = 5,
	STAGE_LAUNCHER = 6,
	STAGE_LOOPBACK = 7,
	STAGE_HOSTNAME = 8,
	STAGE_ROOT = 9,
	STAGE_MOUNT = 10,
	STAGE_PIVOT = 11,
	STAGE_CGROUP_NS = 12,
	STAGE_KEYRING = 13,
	STAGE_USER = 14,
	STAGE_USER_NS = 15,
	STAGE_CAPABILITIES = 16,
	STAGE_LANDLOCK = 17,
	STAGE_STDIO = 18,
	STAGE_FORK = 19,
	STAGE_RLIMIT = 20,
	STAGE_TERMINAL = 21,
	STAGE_CWD = 22,
	STAGE_SECCOMP = 23,
	STAGE_EXEC = 24,
	STAGE_TEMPLATE = 25,
};

#endif
