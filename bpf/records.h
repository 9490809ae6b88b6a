/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the probes and the daemon share: the entry of a run, its counters, and the records of the
 * rings. supervisor/probes/layout.py is the other side; tests/unit/test_probe_layout.py compares
 * the two through BTF. Fixed-width fields, explicit padding, native byte order.
 */
#ifndef SUPERVISOR_RECORDS_H
#define SUPERVISOR_RECORDS_H

#define SYSCALL_SLOTS 512 /* numbers below this are counted one by one */
#define SYSCALL_OTHER 511 /* what is above, and every call of another ABI */
#define COMM_SIZE     16
#define PATH_SIZE     256

enum run_level {
	LEVEL_OFF = 0, /* only its addresses are looked at */
	LEVEL_SUMMARY = 1,
	LEVEL_FULL = 2,
};

/* One run, found by the id of its cgroup. The daemon writes it before the first process exists. */
struct run_entry {
	__u32 slot;	    /* of the arrays */
	__u32 level;	    /* enum run_level */
	__u32 init_tgid;    /* our init, whose own calls are not the run's; 0 until the program is
			       executed */
	__u32 deny_network; /* what no rule names may not be reached */
};

/* Calls that returned. What never does, exit(2) and what death cuts short, is counted at the end of
 * its thread. */
struct syscall_count {
	__u64 succeeded;
	__u64 failed;
};

struct run_counts {
	struct syscall_count syscalls[SYSCALL_SLOTS];
	__u64 seen;    /* records put into a ring */
	__u64 dropped; /* records that found it full */
	__u64 pad[6];
};

enum record_type {
	RECORD_EXEC = 1,
	RECORD_FORK = 2,
	RECORD_EXIT = 3,
	RECORD_SYSCALL = 4,
	RECORD_FILE = 5,
	RECORD_NETWORK = 6,
};

enum syscall_abi {
	ABI_X86_64 = 0,
	ABI_I386 = 1,
	ABI_X32 = 2,
};

/* Every record begins with this. pid and tid are the run's own, of its pid namespace. */
struct record_header {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u64 cgroup;
	__u32 pid;
	__u32 tid;
	__u16 type;
	__u16 size;
	__u32 host_tid;
};

struct exec_record {
	struct record_header head;
	__u32 parent;
	__u32 argv_size;
	char comm[COMM_SIZE];
	char path[PATH_SIZE];
	char argv[PATH_SIZE]; /* as in memory: each ends with a NUL; cut at the size */
};

struct fork_record {
	struct record_header head;
	__u32 child_pid;
	__u32 child_tid;
	char comm[COMM_SIZE];
};

struct exit_record {
	struct record_header head;
	__u32 status; /* as waitpid(2) tells it */
	__u32 leader; /* the whole process ended */
	__s32 nr;     /* of the system call it died in; -1: in none */
	__u32 abi;
	char comm[COMM_SIZE];
};

struct syscall_record {
	struct record_header head;
	__s64 result;
	__u64 args[6];
	__u32 nr;
	__u32 abi; /* enum syscall_abi */
};

/* A call that names files, as its caller named them; `resolved` says that `path` is where the
 * opened file really lies: its names from the last to the first, each ended by a NUL. */
struct file_record {
	struct record_header head;
	__s64 result;
	__u32 nr;
	__u32 flags; /* of open(2) */
	__u32 resolved;
	__u32 path_size;
	char path[PATH_SIZE];
};

struct two_file_record {
	struct file_record first;
	char second[PATH_SIZE];
};

enum network_operation {
	NETWORK_CONNECT = 1,
	NETWORK_SEND = 2, /* a datagram from a socket that is not connected */
	NETWORK_BIND = 3,
};

/* What the kernel itself is about to use, not what lies in the caller's memory. */
struct network_record {
	struct record_header head;
	__u32 operation; /* enum network_operation */
	__u32 denied;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 port;
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

/* Whom a run may reach: the longest prefix that fits decides, by the run's slot and the address. */
struct address_key {
	__u32 prefix; /* bits of what follows that count */
	__u32 slot;
	__u8 address[16];
};

#define PORT_RULES 16

struct port_rule {
	__u16 first;
	__u16 last;
	__u32 deny; /* else allow */
};

/* The first that the port lies in decides; none: the run's default. */
struct address_rule {
	__u32 count;
	__u32 pad;
	struct port_rule ports[PORT_RULES];
};

#endif
