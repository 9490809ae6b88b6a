/* SPDX-License-Identifier: Apache-2.0 */
/* What the address hooks do not see: who listens, who was accepted, and Unix sockets. */
#ifndef SUPERVISOR_SOCKETS_H
#define SUPERVISOR_SOCKETS_H

#include "events.h"

#define NR_CONNECT  42
#define NR_ACCEPT   43
#define NR_SENDTO   44
#define NR_RECVFROM 45
#define NR_SENDMSG  46
#define NR_RECVMSG  47
#define NR_SHUTDOWN 48
#define NR_BIND	    49
#define NR_LISTEN   50
#define NR_ACCEPT4  288
#define NR_SENDMMSG 307

#define DNS_PORT 53

#define AF_UNIX	       1
#define SUN_PATH_SIZE  108 /* unix(7) */
#define SUN_PATH_START 2

/* As struct msghdr begins. */
struct user_msghdr_start {
	__u64 name;
	__u32 name_size;
	__u32 pad;
};

static __always_inline __u32 socket_operation(long nr)
{
	switch (nr) {
	case NR_CONNECT:
		return NETWORK_CONNECT;
	case NR_SENDTO:
	case NR_SENDMSG:
	case NR_SENDMMSG:
		return NETWORK_SEND;
	case NR_BIND:
		return NETWORK_BIND;
	case NR_LISTEN:
		return NETWORK_LISTEN;
	case NR_ACCEPT:
	case NR_ACCEPT4:
		return NETWORK_ACCEPT;
	default:
		return 0;
	}
}

/* The other side's address, or ours. */
static __always_inline void fill_inet(struct socket_record *record, struct sock *sk, int theirs)
{
	__u32 word;

	if (record->family == AF_INET) {
		word = theirs ? BPF_CORE_READ(sk, __sk_common.skc_daddr)
			      : BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		record->address[10] = record->address[11] = 0xff;
		__builtin_memcpy(record->address + 12, &word, sizeof(word));
	} else if (theirs) {
		BPF_CORE_READ_INTO(&record->address, sk, __sk_common.skc_v6_daddr);
	} else {
		BPF_CORE_READ_INTO(&record->address, sk, __sk_common.skc_v6_rcv_saddr);
	}
	record->port = theirs ? bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport))
			      : BPF_CORE_READ(sk, __sk_common.skc_num);
}

/* Where the socket lies, whatever it was called; its name where it lies nowhere. */
static __always_inline void fill_bound(struct socket_record *record, struct sock *sk)
{
	struct unix_sock *socket = (struct unix_sock *)sk;
	struct dentry *dentry = BPF_CORE_READ(socket, path.dentry);
	struct unix_address *address;
	__u32 size;

	if (dentry) {
		record->resolved = 1;
		record->path_size =
			resolve_path((unsigned long)BPF_CORE_READ(socket, path.mnt),
				     (unsigned long)dentry, (struct path_names *)record->path);
		return;
	}
	address = BPF_CORE_READ(socket, addr);
	if (!address)
		return;
	size = (__u32)BPF_CORE_READ(address, len) - SUN_PATH_START;
	if (size > SUN_PATH_SIZE)
		return;
	if (!bpf_probe_read_kernel(record->path, size & 127,
				   (void *)address +
					   bpf_core_field_offset(struct unix_address, name) +
					   SUN_PATH_START))
		record->path_size = size;
}

static __always_inline void fill_named(struct socket_record *record, unsigned long name, __u32 size)
{
	size -= SUN_PATH_START;
	if (size <= SUN_PATH_SIZE &&
	    !bpf_probe_read_user(record->path, size & 127, (void *)(name + SUN_PATH_START)))
		record->path_size = size;
}

/* Of sendmmsg(2) the first message's. */
static __always_inline struct user_msghdr_start name_of_message(struct pt_regs *regs, long nr)
{
	struct user_msghdr_start message = {.name = regs->r8, .name_size = (__u32)regs->r9};

	if (nr != NR_SENDTO && bpf_probe_read_user(&message, sizeof(message), (void *)regs->si))
		message.name = 0;
	return message;
}

static __always_inline void fill_unix(struct socket_record *record, struct pt_regs *regs,
				      struct sock *sk, __u32 operation,
				      struct user_msghdr_start name, long result)
{
	struct sock *peer;

	if (operation == NETWORK_SEND) {
		fill_named(record, name.name, name.name_size);
	} else if (operation == NETWORK_CONNECT && !result) {
		peer = BPF_CORE_READ((struct unix_sock *)sk, peer);
		if (peer)
			fill_bound(record, peer);
	} else if (result < 0 && operation != NETWORK_LISTEN) {
		fill_named(record, regs->si, (__u32)regs->dx);
	} else {
		fill_bound(record, sk);
	}
}

static __always_inline int is_told_of(struct sock *sk, __u16 family, __u32 operation, int is_named,
				      long result)
{
	if (operation == NETWORK_ACCEPT && result < 0)
		return 0;
	if (family == AF_UNIX)
		return bpf_core_type_exists(struct unix_sock) &&
		       (operation != NETWORK_SEND || is_named);
	if ((family != AF_INET && family != AF_INET6) || result < 0)
		return 0;
	/* The hooks see whom a datagram names; a socket that is connected sends past them. */
	if (operation == NETWORK_SEND)
		return !is_named && BPF_CORE_READ(sk, __sk_common.skc_dport) == bpf_htons(DNS_PORT);
	return operation == NETWORK_LISTEN || operation == NETWORK_ACCEPT;
}

__noinline int note_socket(struct run_counts *counts, __u64 cgroup, long result)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
	long nr = number_of(regs);
	__u32 operation = socket_operation(nr);
	struct user_msghdr_start name;
	struct socket_record *record;
	struct socket *socket;
	struct file *file;
	struct sock *sk;
	__u16 family;

	if (!counts)
		return 0;
	name.name = name.name_size = 0;
	file = file_of(task, operation == NETWORK_ACCEPT && result >= 0 ? result : (int)regs->di);
	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return 0;
	socket = BPF_CORE_READ(file, private_data);
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	/* A message that names nobody goes to whom the socket is connected to. */
	if (operation == NETWORK_SEND)
		name = name_of_message(regs, nr);
	if (!is_told_of(sk, family, operation, name.name != 0, result))
		return 0;
	record = reserve_details(counts, sizeof(*record));
	if (!record) {
		count(&counts->dropped);
		return 0;
	}
	__builtin_memset(record, 0, sizeof(*record));
	fill_head(&record->head, counts, cgroup, RECORD_SOCKET, sizeof(*record));
	record->result = result;
	record->nr = (__u32)nr;
	record->operation = operation;
	record->family = family;
	record->type = (__u32)BPF_CORE_READ(socket, type);
	record->protocol = BPF_CORE_READ(sk, sk_protocol);
	if (family == AF_UNIX && bpf_core_type_exists(struct unix_sock))
		fill_unix(record, regs, sk, operation, name, result);
	else
		fill_inet(record, sk, operation != NETWORK_LISTEN);
	count(&counts->seen);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

/* connect(2) to listen(2), but for what has nothing to do with addresses. */
static __always_inline int is_socket_call(long nr)
{
	return (nr >= NR_CONNECT && nr <= NR_LISTEN && nr != NR_RECVFROM && nr != NR_RECVMSG &&
		nr != NR_SHUTDOWN) ||
	       nr == NR_ACCEPT4 || nr == NR_SENDMMSG;
}

#endif
