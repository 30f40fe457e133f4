// SPDX-License-Identifier: GPL-2.0
/*
 * Counts the resets that the kernel sends for some ports, and says what was reset: the raw tracepoint tcp_send_reset
 * (include/trace/events/tcp.h), whose first two arguments are the socket and the packet that is answered.
 *
 * 1. A listener closes with connections in its accept queue. inet_csk_listen_stop() resets each of them; such a
 *    socket has no struct socket, because no process has accepted it, and is not dead yet. There is no packet.
 * 2. A server closes an accepted connection with unread data, or resets it. The struct socket is still there.
 * 3. Data arrives on a connection that the server has closed: its socket is dead (sock_orphan()), or only a
 *    TIME_WAIT one is left.
 * 4. The final ACK of a handshake arrives, and its request went with the listener: the packet finds another listener,
 *    or nothing.
 * 5. A SYN arrives at a port where nobody listens. Before Linux 6.10 the tracepoint is not reached without a socket.
 *
 * Packets that were on their way when their connection was reset, or had ended, look like 4: for example the answer to a
 * FIN that was sent twice. So which connection was reset or ended is remembered, and not counted again, and who closed
 * it, for 3.
 */
#include "abi.h"
#include "fields.h"
#include "process.h"

#define SOCK_DEAD 1    /* 1 << SOCK_DEAD of enum sock_flags (include/net/sock.h) */
#define TCP_SYN 0x02   /* of the byte of flags in struct tcphdr */
#define IPV4_SOURCE 12 /* offsets in struct iphdr, ipv6hdr, tcphdr: the packet's format and not the kernel's */
#define IPV6_SOURCE 8
#define TCP_FLAGS 13

struct packet {
	u16 source; /* network order */
	u16 destination;
	u8 flags;
};

/* The other end, and our port in host order. IPv4 addresses are mapped, as those of sockets of both families are. */
struct address_pair {
	u32 remote[4];
	u16 remote_port;
	u16 local_port;
};

/* What is known of a connection. */
struct seen {
	u64 ended_ns; /* CLOCK_MONOTONIC; 0 while it may live */
	u32 closer;   /* the process that closed it, 0 where none is known */
	u32 unused;
};

static __always_inline void set_ipv4(struct address_pair *peer, u32 address)
{
	peer->remote[2] = bpf_htonl(0xffff);
	peer->remote[3] = address;
}

static __always_inline void read_packet(struct address_pair *peer, struct packet *packet, void *skb)
{
	u16 network = 0, transport = 0;
	void *head = NULL;
	u32 ipv4 = 0;
	u8 version = 0;

	READ(head, skb, OFF_HEAD);
	READ(network, skb, OFF_NETWORK_HEADER);
	READ(transport, skb, OFF_TRANSPORT_HEADER);
	READ(packet->source, head, transport);
	READ(packet->destination, head, transport + 2);
	READ(packet->flags, head, transport + TCP_FLAGS);
	READ(version, head, network);
	if (version >> 4 == 6) {
		READ(peer->remote, head, network + IPV6_SOURCE);
	} else {
		READ(ipv4, head, network + IPV4_SOURCE);
		set_ipv4(peer, ipv4);
	}
	peer->remote_port = packet->source;
	peer->local_port = bpf_ntohs(packet->destination);
}

static __always_inline void read_socket(struct address_pair *peer, void *sk)
{
	u32 ipv4 = 0;
	u16 family = 0, port = 0;

	READ(family, sk, OFF_FAMILY);
	if (family == FAMILY_INET6) {
		READ(peer->remote, sk, OFF_REMOTE6);
	} else {
		READ(ipv4, sk, OFF_REMOTE);
		set_ipv4(peer, ipv4);
	}
	READ(peer->remote_port, sk, OFF_REMOTE_PORT);
	READ(port, sk, OFF_SPORT); /* skc_num is 0 by then */
	peer->local_port = bpf_ntohs(port);
}

static __always_inline u32 network_namespace(void *sk, void *skb)
{
	void *net = NULL, *device = NULL;
	u32 inum = 0;

	if (sk) {
		READ(net, sk, OFF_NET);
	} else {
		READ(device, skb, OFF_SKB_DEVICE);
		READ(net, device, OFF_DEVICE_NET);
	}
	READ(inum, net, OFF_INUM);
	return inum;
}

static __always_inline u32 kind_of(void *sk, struct packet *packet)
{
	u64 flags = 0;
	void *socket = NULL;
	u8 state = 0;

	if (!sk)
		return packet->flags & TCP_SYN ? RESET_REFUSED : RESET_HANDSHAKE;
	READ(state, sk, OFF_STATE);
	if (state == BPF_TCP_LISTEN || state == BPF_TCP_NEW_SYN_RECV)
		return RESET_HANDSHAKE;
	if (state == BPF_TCP_TIME_WAIT)
		return RESET_ACCEPTED;
	READ(socket, sk, OFF_SOCKET);
	READ(flags, sk, OFF_FLAGS);
	return socket || flags & SOCK_DEAD ? RESET_ACCEPTED : RESET_NEVER_ACCEPTED;
}

static __always_inline void count(u16 port, u32 kind, u32 process)
{
	u64 key = (u64)port << 48 | (u64)kind << 32 | process, one = 1, *found;

	found = bpf_map_lookup_elem(MAP(COUNTS_FD), &key);
	if (!found && process) {
		bpf_map_update_elem(MAP(COUNTS_FD), &key, &(u64){ 0 }, BPF_NOEXIST);
		found = bpf_map_lookup_elem(MAP(COUNTS_FD), &key);
	}
	if (!found) { /* the map is full: the element of nobody was there from the start */
		key &= ~0xffffffffULL;
		found = bpf_map_lookup_elem(MAP(COUNTS_FD), &key);
	}
	if (found)
		__sync_fetch_and_add(found, one);
}

int tcp_resets(u64 *ctx)
{
	void *sk = (void *)ctx[0], *skb = (void *)ctx[1];
	struct address_pair peer = {};
	struct packet packet = {};
	struct seen after = { .ended_ns = bpf_ktime_get_ns() }, *before;
	u32 kind, *watched;
	u64 place;
	bool late;

	if (skb)
		read_packet(&peer, &packet, skb);
	else
		read_socket(&peer, sk);
	place = (u64)network_namespace(sk, skb) << 16 | peer.local_port;
	watched = bpf_map_lookup_elem(MAP(WATCHED_FD), &place);
	if (!watched)
		return 0;
	kind = kind_of(sk, &packet);
	before = bpf_map_lookup_elem(MAP(SEEN_FD), &peer);
	late = before && before->ended_ns && after.ended_ns - before->ended_ns <= LATE_NS;
	/* Who closes a connection runs; what answers a packet runs in whatever process was interrupted. */
	if (!skb)
		after.closer = process_id(*watched);
	else if (before && kind == RESET_ACCEPTED)
		after.closer = before->closer;
	if (kind != RESET_HANDSHAKE || !late)
		count(peer.local_port, kind, after.closer);
	bpf_map_update_elem(MAP(SEEN_FD), &peer, &after, BPF_ANY);
	return 0;
}

/*
 * The raw tracepoint inet_sock_set_state: the socket, its old and its new state. It tells that a connection has ended,
 * and, as only a process closes one, by whom.
 */
int tcp_ended(u64 *ctx)
{
	int old = (int)ctx[1], new = (int)ctx[2];
	struct seen after = {}, *before;
	void *sk = (void *)ctx[0];
	struct address_pair peer = {};
	u64 place;
	u32 *watched;

	if (new != BPF_TCP_CLOSE && new != BPF_TCP_FIN_WAIT1 && new != BPF_TCP_LAST_ACK)
		return 0;
	if (old == BPF_TCP_LISTEN || old == BPF_TCP_SYN_SENT || old == BPF_TCP_SYN_RECV)
		return 0;
	read_socket(&peer, sk);
	place = (u64)network_namespace(sk, NULL) << 16 | peer.local_port;
	watched = bpf_map_lookup_elem(MAP(WATCHED_FD), &place);
	if (!watched)
		return 0;
	if (new == BPF_TCP_CLOSE) {
		before = bpf_map_lookup_elem(MAP(SEEN_FD), &peer);
		after.closer = before ? before->closer : 0;
		after.ended_ns = bpf_ktime_get_ns();
	} else {
		after.closer = process_id(*watched);
	}
	bpf_map_update_elem(MAP(SEEN_FD), &peer, &after, BPF_ANY);
	return 0;
}
