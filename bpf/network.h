/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Addresses: recorded always, denied where a run's rules say so. The hooks lie on the daemon's
 * group, hence on every run below it, and see the kernel's own copy of an address: changing the
 * caller's memory after the check changes nothing.
 */
#ifndef SUPERVISOR_NETWORK_H
#define SUPERVISOR_NETWORK_H

#include "events.h"

#define ALLOWED	  1
#define DENIED	  0 /* the caller gets EPERM */
#define SLOT_BITS 32

/* sys/socket.h is not for kernel programs. */
#define SOCK_STREAM 1
#define SOCK_DGRAM  2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct address_key);
	__type(value, struct address_rule);
} addresses SEC(".maps");

struct port_search {
	struct address_rule *rule;
	__u32 port;
	__u32 verdict;
};

static long port_step(__u32 index, void *context)
{
	struct port_search *search = context;
	struct port_rule *ports;
	__u64 at = index;

	if (index >= search->rule->count)
		return 1;
	at &= PORT_RULES - 1;
	/* The verifier knows the bounds of this register, not of what the compiler would use. */
	asm volatile("" : "+r"(at));
	ports = &search->rule->ports[at];
	if (search->port < ports->first || search->port > ports->last)
		return 0;
	search->verdict = ports->deny;
	return 1;
}

/* enum address_verdict */
static __always_inline __u32 verdict(const struct run_entry *run, const __u8 address[16],
				     __u16 port)
{
	struct address_key key = {.prefix = SLOT_BITS + 128, .slot = run->slot};
	struct port_search search = {
		.port = port,
		.verdict = run->deny_network ? ADDRESS_DENY : ADDRESS_ALLOW,
	};

	__builtin_memcpy(key.address, address, sizeof(key.address));
	search.rule = bpf_map_lookup_elem(&addresses, &key);
	if (search.rule)
		bpf_loop(PORT_RULES, port_step, &search, 0);
	return search.verdict;
}

/* The unspecified address is this host's own (connect(2)), by whichever of its three names. */
static __always_inline void name_loopback(__u8 address[16])
{
	__u8 any = 0;

	for (int i = 0; i < 16; i++) {
		if (i != 10 && i != 11)
			any |= address[i];
	}
	if (any)
		return;
	if (address[10] == 0xff && address[11] == 0xff) {
		address[12] = 127;
		address[15] = 1;
	} else if (!address[10] && !address[11]) {
		address[15] = 1;
	}
}

static __always_inline int on_address(struct bpf_sock_addr *ctx, __u32 operation, int is_v6)
{
	__u16 port = bpf_ntohs((__u16)ctx->user_port);
	struct network_record *record;
	struct run_counts *counts;
	struct run_entry *run;
	__u8 address[16] = {};
	int allowed;
	__u64 cgroup;

	run = run_of_current(&cgroup);
	if (!run)
		return ALLOWED;
	if (is_v6) {
		__u32 words[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2],
				  ctx->user_ip6[3]};

		__builtin_memcpy(address, words, sizeof(address));
	} else {
		__u32 word = ctx->user_ip4;

		address[10] = address[11] = 0xff;
		__builtin_memcpy(address + 12, &word, sizeof(word));
	}
	if (operation != NETWORK_BIND)
		name_loopback(address);
	/* Who may not be reached must not come by himself: a held run takes no port of its choice.
	 */
	if (operation == NETWORK_BIND)
		allowed = !run->deny_network || !port;
	else {
		__u32 said = verdict(run, address, port);

		allowed = said == ADDRESS_ALLOW;
		/* No signal from here: the call's way out sends it. */
		if (said == ADDRESS_KILL)
			run->doomed = 1;
	}
	counts = counts_of(run);
	if (!counts)
		return allowed;
	record = reserve_details(counts, sizeof(*record));
	if (!record) {
		count(&counts->dropped);
		return allowed;
	}
	fill_head(&record->head, counts, cgroup, RECORD_NETWORK, sizeof(*record));
	record->operation = operation;
	record->denied = !allowed;
	record->family = ctx->family;
	record->type = ctx->type;
	record->protocol = ctx->protocol;
	record->port = port;
	__builtin_memcpy(record->address, address, sizeof(address));
	count(&counts->seen);
	bpf_ringbuf_submit(record, allowed ? BPF_RB_NO_WAKEUP : BPF_RB_FORCE_WAKEUP);
	return allowed;
}

/* Of a run that is held to addresses: ping sockets and whatever else sends past the hooks above. */
SEC("cgroup/sock_create")
int on_sock_create(struct bpf_sock *ctx)
{
	struct run_entry *run;
	__u64 cgroup;

	run = run_of_current(&cgroup);
	if (!run || !run->deny_network)
		return ALLOWED;
	if (ctx->family != AF_INET && ctx->family != AF_INET6)
		return ALLOWED;
	return (ctx->type == SOCK_STREAM && (!ctx->protocol || ctx->protocol == IPPROTO_TCP)) ||
	       (ctx->type == SOCK_DGRAM && (!ctx->protocol || ctx->protocol == IPPROTO_UDP));
}

#define ETH_P_IP    0x0800
#define ETH_P_IPV6  0x86dd
#define IPV4_SIZE   20
#define IPV6_SIZE   40
#define UDP_LITE    136
#define HOP_BY_HOP  0
#define ROUTING	    43
#define DESTINATION 60

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == UDP_LITE;
}

/*
 * The packet itself, once more: the hooks above see whom a call names, which a routing header or a
 * socket of a kind without hooks need not mean. In the sender's context or not, so that only the
 * socket tells whose it is.
 */
SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	__u64 cgroup = bpf_skb_ancestor_cgroup_id(skb, (int)group_level);
	struct run_entry *run = bpf_map_lookup_elem(&runs, &cgroup);
	struct network_record *record;
	struct run_counts *counts;
	__u8 head[IPV6_SIZE] = {};
	__u8 address[16] = {};
	__u32 ports_at;
	__u8 protocol;
	__u16 port = 0;

	if (!run || !run->held)
		return ALLOWED;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, 0, head, IPV4_SIZE))
			return DENIED;
		protocol = head[9];
		ports_at = (head[0] & 0xf) * 4;
		address[10] = address[11] = 0xff;
		__builtin_memcpy(address + 12, head + 16, 4);
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, 0, head, IPV6_SIZE))
			return DENIED;
		protocol = head[6];
		ports_at = IPV6_SIZE;
		__builtin_memcpy(address, head + 24, 16);
		if (protocol == HOP_BY_HOP || protocol == ROUTING || protocol == DESTINATION)
			goto denied;
	} else {
		return DENIED;
	}
	if (has_ports(protocol)) {
		if (bpf_skb_load_bytes(skb, ports_at + 2, &port, sizeof(port)))
			return DENIED;
		port = bpf_ntohs(port);
	}
	if (verdict(run, address, port) == ADDRESS_ALLOW)
		return ALLOWED;
denied:
	counts = counts_of(run);
	if (!counts)
		return DENIED;
	record = reserve_details(counts, sizeof(*record));
	if (!record) {
		count(&counts->dropped);
		return DENIED;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->head.time_ns = bpf_ktime_get_ns();
	record->head.cgroup = cgroup;
	record->head.type = RECORD_NETWORK;
	record->head.size = sizeof(*record);
	record->operation = NETWORK_PACKET;
	record->denied = 1;
	record->protocol = protocol;
	record->port = port;
	__builtin_memcpy(record->address, address, sizeof(address));
	count(&counts->seen);
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return DENIED;
}

SEC("cgroup/connect4")
int on_connect4(struct bpf_sock_addr *ctx)
{
	return on_address(ctx, NETWORK_CONNECT, 0);
}

SEC("cgroup/connect6")
int on_connect6(struct bpf_sock_addr *ctx)
{
	return on_address(ctx, NETWORK_CONNECT, 1);
}

SEC("cgroup/sendmsg4")
int on_sendmsg4(struct bpf_sock_addr *ctx)
{
	return on_address(ctx, NETWORK_SEND, 0);
}

SEC("cgroup/sendmsg6")
int on_sendmsg6(struct bpf_sock_addr *ctx)
{
	return on_address(ctx, NETWORK_SEND, 1);
}

SEC("cgroup/bind4")
int on_bind4(struct bpf_sock_addr *ctx)
{
	return on_address(ctx, NETWORK_BIND, 0);
}

SEC("cgroup/bind6")
int on_bind6(struct bpf_sock_addr *ctx)
{
	return on_address(ctx, NETWORK_BIND, 1);
}

#endif
