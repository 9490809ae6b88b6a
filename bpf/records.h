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
	__u32 rules;	    /* whose names it is held to; 0: none, and no file is looked at */
	__u32 wake;	    /* bits of enum mark: told at once */
	__u32 kill;	    /* bits of enum mark: end the run */
	__u32 uid;	    /* the host's number of its user; 0: not looked at */
	__u32 doomed;	    /* whatever of it makes a call dies */
	__u32 noted;	    /* what was told at once so far */
	__u32 held;	    /* to addresses: what it sends is looked at once more on its way out */
	__u32 guarded;	    /* bits of enum guarded_use: denied of some file; see guard.h */
};

/* What the probes notice of an event, for rules to ask for. supervisor/rules/needs.py names them.
 */
enum mark {
	MARK_EXEC = 1 << 0,
	MARK_EXEC_MEMFD = 1 << 1,   /* the program lies in memory alone: memfd_create(2) */
	MARK_EXEC_DELETED = 1 << 2, /* its file has no name any more */
	MARK_SOCKET = 1 << 3,	    /* an IPv4 or IPv6 socket becomes descriptor 0, 1 or 2 */
	MARK_SETUID_BIT = 1 << 4,
	MARK_CREDENTIALS = 1 << 5, /* the effective user is not the run's */
	MARK_PROTECT = 1 << 6,	   /* memory made executable after the fact */
	MARK_WX = 1 << 7,	   /* memory both writable and executable */
	MARK_MEMFD = 1 << 8,
	MARK_IO_URING = 1 << 9,
	MARK_REFUSED = 1 << 10,	    /* a call answered EPERM or ENOSYS */
	MARK_CALL = 1 << 11,	    /* a call that a rule names */
	MARK_UNLINK = 1 << 12,	    /* every removal, whatever its name */
	MARK_NAME = 1 << 13,	    /* a file with a name that a rule looks for */
	MARK_SCRIPT = 1 << 14,	    /* the file executed names an interpreter */
	MARK_PIPED = 1 << 15,	    /* descriptor 0 is a pipe when a program is executed */
	MARK_EXEC_SOCKET = 1 << 16, /* 0, 1 or 2 is such a socket then */
	MARK_MAP_MEMFD = 1 << 17,   /* memory of memfd_create(2) mapped to be executed */
	MARK_LONG = 1 << 18,	    /* a path does not fit into PATH_SIZE; no rule asks for it */
};

#define NOTED_MAX 4096 /* of one run, told at once; the rest waits its turn */

/* A name as far as it is compared: its first 19 bytes. */
#define NAME_KEY_SIZE 20

struct name_key {
	__u32 rules;
	char name[NAME_KEY_SIZE];
};

/* What a name means: bits of these, and above them the class of files below it at the root. */
enum name_use {
	NAME_READ = 1,
	NAME_WRITE = 2,
	NAME_EXEC = 4,
	NAME_LONG = 8, /* the path, as given or where it lies, is longer than PATH_SIZE */
};
#define NAME_CLASS_SHIFT 8
#define FILE_CLASSES	 16

struct call_key {
	__u32 rules;
	__u32 nr;
};

struct file_count {
	__u64 read;
	__u64 written;
};

/* Calls that returned. What never does, exit(2) and what death cuts short, is counted at the end of
 * its thread. */
struct syscall_count {
	__u64 succeeded;
	__u64 failed;
};

enum ring {
	RING_PRIORITY,
	RING_DETAILS,
	RING_BULK,
	RINGS,
};

#define RECORD_OVERHEAD 8 /* BPF_RINGBUF_HDR_SZ */

struct run_counts {
	struct syscall_count syscalls[SYSCALL_SLOTS];
	__u64 seen;	    /* records put into a ring other than bulk, where `given` says it */
	__u64 dropped;	    /* records that found it full */
	__u64 flown;	    /* calls written to the flight recorder */
	__u64 unnoted;	    /* of the dropped, those that a rule had asked for */
	__u64 given[RINGS]; /* bytes put into each ring, RECORD_OVERHEAD a record among them */
	__u64 taken[RINGS]; /* bytes read of them: the daemon's to say */
	__u64 stamp;	    /* the last time that the flight recorder took */
	__u64 tick;	    /* of the kernel's, when it did */
	__u64 pid_depth; /* of the run's pid namespace, from 1; 0 until its program is executed */
	__u64 pad[3];
	struct file_count files[FILE_CLASSES]; /* opened, by class */
};

#define FLIGHT_CALLS   512 /* a power of two */
#define FLIGHT_STAMPED 8

/* One of a run's last calls, kept in case that something comes to light. */
struct flight_call {
	__u64 time_ns; /* its own, or that of one at most FLIGHT_STAMPED - 1 before it in the same
			  tick */
	__s64 result;
	__u64 args[6];
	__u32 pid;
	__u32 tid;
	__u32 nr;
	__u32 abi;
	__u64 place; /* its number among the run's calls, from 1; written last */
};

struct flight {
	struct flight_call calls[FLIGHT_CALLS];
};

enum record_type {
	RECORD_EXEC = 1,
	RECORD_FORK = 2,
	RECORD_EXIT = 3,
	RECORD_SYSCALL = 4,
	RECORD_FILE = 5,
	RECORD_NETWORK = 6,
	RECORD_EVENT = 7,
	RECORD_SOCKET = 8,
	RECORD_SIGNAL = 9,
	RECORD_DENIAL = 10, /* guard.h has it */
};

enum syscall_abi {
	ABI_X86_64 = 0,
	ABI_I386 = 1,
	ABI_X32 = 2,
};

/* Every record begins with this. pid and tid are the run's own, of its pid namespace; not of one
 * that it has made within. */
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
	char path[PATH_SIZE]; /* as its caller named it */
	char argv[PATH_SIZE]; /* as in memory: each ends with a NUL; cut at the size */
	__u32 marks;	      /* enum mark */
	__u32 file_size;
	__u32 cwd_size;
	__u32 device;
	__u64 inode;
	__u64 size;
	__u64 changed_ns;     /* its i_ctime */
	char file[PATH_SIZE]; /* what is executed, an interpreter for a script: names, last first */
	char cwd[PATH_SIZE];  /* likewise, where `path` is relative */
};

#define LONG_ARGV_SIZE 4096

/* Of a program whose arguments do not fit into that. */
struct long_exec_record {
	struct exec_record exec;
	char argv[LONG_ARGV_SIZE]; /* argv_size of it */
};

/* What is not a file, an address or a process. */
struct event_record {
	struct record_header head;
	__s64 result;
	__u64 args[6];
	__u32 nr;
	__u32 abi;
	__u32 marks;
	__u32 pad;
	char comm[COMM_SIZE];
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
	__u32 marks;
	__u32 cwd_size;
	char path[PATH_SIZE];
};

/* Of a name that a rule looks for: where relative ones begin, the second's at a place of its own.
 */
struct placed_file_record {
	struct file_record first;
	char second[PATH_SIZE];
	char cwd[PATH_SIZE];
	char second_cwd[PATH_SIZE];
	__u32 second_cwd_size;
	__u32 pad;
};

#define LONG_PATH_SIZE 4096 /* PATH_MAX */

/* Of one whose paths are too long for that, as dots and slashes make every path. */
struct long_file_record {
	struct placed_file_record placed;
	char path[LONG_PATH_SIZE]; /* path_size of it where it is resolved */
	char second[LONG_PATH_SIZE];
};

struct two_file_record {
	struct file_record first;
	char second[PATH_SIZE];
};

enum network_operation {
	NETWORK_CONNECT = 1,
	NETWORK_SEND = 2, /* a datagram from a socket that is not connected */
	NETWORK_BIND = 3,
	NETWORK_PACKET = 4, /* on its way out; whose thread's it is nobody knows */
	NETWORK_LISTEN = 5,
	NETWORK_ACCEPT = 6,
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

/* What the kernel has, or as given where the call has failed. Of AF_UNIX a path as in struct
 * file_record, or sun_path: one that begins with a NUL is abstract (unix(7)). */
struct socket_record {
	struct record_header head;
	__s64 result;
	__u32 nr;
	__u32 operation; /* enum network_operation */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 port;
	__u8 address[16]; /* the other side's of what was accepted; IPv4 as ::ffff:a.b.c.d */
	__u32 resolved;
	__u32 path_size;
	char path[PATH_SIZE];
};

/* Of the run's process that it is for. */
struct signal_record {
	struct record_header head;
	__u32 number;
	__s32 code;	  /* si_code of sigaction(2) */
	__u32 sender;	  /* the run's own number; 0: nobody of it */
	__u32 generation; /* enum of TRACE_SIGNAL_*: delivered, ignored, already pending, lost */
};

/* Whom a run may reach: the longest prefix that fits decides, by the run's slot and the address. */
struct address_key {
	__u32 prefix; /* bits of what follows that count */
	__u32 slot;
	__u8 address[16];
};

#define PORT_RULES 32

struct port_rule {
	__u16 first;
	__u16 last;
	__u32 deny; /* enum address_verdict */
};

enum address_verdict {
	ADDRESS_ALLOW = 0,
	ADDRESS_DENY = 1,
	ADDRESS_KILL = 2, /* denied, and the end of the run */
};

/* The first that the port lies in decides; none: the run's default. */
struct address_rule {
	__u32 count;
	__u32 pad;
	struct port_rule ports[PORT_RULES];
};

#endif
