// SPDX-License-Identifier: GPL-2.0
/*
 * AutoLOWAT on a stock kernel, for this end alone: whatever the peer is (docs/autolowat.md).
 *
 * 1. `solo_tc` sees every segment before TCP does, follows the frames by sequence number, and marks some segments: it changes
 *    two bytes of the header that mean nothing, so that the segment misses TCP's header prediction.
 * 2. For a marked segment TCP calls `autolowat_solo` with the socket locked, before the data is queued (PARSE_HDR_OPT, "hook
 *    A"). It sets SO_RCVLOWAT: to what the open frame still needs, or to 1.
 * 3. While SO_RCVLOWAT is above 1 the program also runs for everything that the socket sends, an acknowledgement
 *    at least (HDR_OPT_LEN, "hook B"). It mends what went past the tc program.
 *
 * A segment is marked where a frame of several segments begins, if its reader waits for it, and where such a frame ends.
 */
#ifndef FRAMES_MAX
#define FRAMES_MAX 32
#endif
#include "autolowat/solo_follow.h"
#include "autolowat/solo_reader.h"

#define TCX_NEXT -1
#define ETH_HEADER 14

#define ECN_MODES 0x11 /* of tcp_sock.ecn_flags: TCP_ECN_OK, and TCP_ECN_MODE_ACCECN (Linux 6.18) */

/* tcp_sock.tcp_header_len: without and with timestamps, and nothing else */
#define HEADER_PLAIN 20
#define HEADER_STAMPED 32

#define PARSE_FLAG BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG
#define WRITE_FLAG BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG
#define STATE_FLAG BPF_SOCK_OPS_STATE_CB_FLAG

/* --- tc: before TCP, without the socket's lock --- */

static __always_inline int ingress(struct __sk_buff *skb, u32 link)
{
	struct segment segment = {};
	struct key key = {};
	struct flow *flow;
	bool wanted = false;

	if (!read_segment(skb, link, &key, &segment))
		return TCX_NEXT;
	flow = bpf_map_lookup_elem(sockets_map, &key);
	if (!flow)
		return TCX_NEXT;
	if (!setting(WORKING))
		wanted = true;
	else if (!advance_simply(skb, flow, &segment, &wanted) && !advance(skb, flow, &segment, false, &wanted))
		advance(skb, flow, &segment, true, &wanted);
	if (wanted && mark(skb, &segment, flow))
		flow->doubt = DOUBT_REFUSED;
	return TCX_NEXT;
}

/* The result leaves the packet to the programs that come after this one. */
int solo_tc(struct __sk_buff *skb)
{
	return ingress(skb, ETH_HEADER);
}

/* For devices without a link-layer header: tunnels. */
int solo_tc_raw(struct __sk_buff *skb)
{
	return ingress(skb, 0);
}

/* --- SOCK_OPS: with the socket locked --- */

/*
 * In a context the verifier refuses one load of two fields, which volatile keeps the compiler from, and one of a chosen field,
 * which the barrier does.
 */
static __always_inline void make_key(volatile struct bpf_sock_ops *skops, struct key *key)
{
	u32 remote, local;

	key->remote_port = bpf_htons(bpf_ntohl(skops->remote_port));
	key->local_port = bpf_htons(skops->local_port);
	if (skops->family == FAMILY_INET6) {
		key->remote[0] = skops->remote_ip6[0];
		key->remote[1] = skops->remote_ip6[1];
		key->remote[2] = skops->remote_ip6[2];
		key->remote[3] = skops->remote_ip6[3];
		key->local[0] = skops->local_ip6[0];
		key->local[1] = skops->local_ip6[1];
		key->local[2] = skops->local_ip6[2];
		local = skops->local_ip6[3];
		asm volatile("" : "+r"(local));
		key->local[3] = local;
		return;
	}
	remote = skops->remote_ip4;
	local = skops->local_ip4;
	map_address(key->remote, remote);
	map_address(key->local, local);
}

static __always_inline long set_lowat(struct bpf_sock_ops *skops, struct flow *flow, u32 before, u32 lowat)
{
	u32 flags = skops->bpf_sock_ops_cb_flags;
	int value = lowat;

	if (lowat == before)
		return 0;
	if (flow->flags & WRITE_FLAG && (lowat > 1) != (before > 1))
		bpf_sock_ops_cb_flags_set(skops, lowat > 1 ? flags | WRITE_FLAG : flags & ~WRITE_FLAG);
	return bpf_setsockopt(skops, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value));
}

static __always_inline void give_up(struct bpf_sock_ops *skops, struct key *key, struct flow *flow, u32 doubt)
{
	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags & ~flow->flags);
	if (doubt && doubt < DOUBTS)
		count(FAIL_OPENS + doubt, 1);
	bpf_map_delete_elem(sockets_map, key);
}

/* Bring SO_RCVLOWAT up to date, or give up. `finished`: nothing will follow. */
static __always_inline void settle(struct bpf_sock_ops *skops, void *sk, struct key *key, struct flow *flow, u32 doubt,
				   bool finished)
{
	u32 before, lowat, received = skops->rcv_nxt;
	struct reader reader = {};

	read_reader(sk, flow, &reader);
	bpf_spin_lock(&flow->lock);
	doubt = flow->doubt ?: doubt;
	if (!doubt && after(received, flow->stream.next))
		doubt = is_blind(&flow->stream) ? DOUBT_ORDER : DOUBT_UNSEEN;
	finished |= doubt != NO_DOUBT;
	before = flow->lowat;
	lowat = finished ? 1 : wanted(flow, &reader);
	/* From here on the tc program marks the segment that ends the frame. */
	flow->lowat = lowat;
	answer(flow, &reader, lowat);
	bpf_spin_unlock(&flow->lock);
	if (set_lowat(skops, flow, before, lowat))
		flow->doubt = DOUBT_REFUSED;
	if (finished)
		give_up(skops, key, flow, doubt);
}

/* Hook A. The segment is not queued yet. An acknowledgement alone changes nothing. */
static __always_inline void parsed(struct bpf_sock_ops *skops)
{
	u32 flags = skops->skb_tcp_flags, header = (long)skops->skb_data_end - (long)skops->skb_data;
	struct key key = {};
	struct flow *flow;
	void *sk;

	if (skops->skb_len <= header && !(flags & TCP_FIN))
		return;
	sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	make_key(skops, &key);
	flow = flow_of(sk, &key);
	if (flow)
		settle(skops, sk, &key, flow, flags & TCP_URG ? DOUBT_URGENT : NO_DOUBT,
		       flags & TCP_FIN || !setting(WORKING));
}

/*
 * The frame is still open, all that came has been followed, and the reader has taken nothing since. Without the lock: what
 * changes meanwhile has a callback of its own.
 */
static __always_inline bool is_settled(struct bpf_sock_ops *skops, struct flow *flow, u32 copied)
{
	return flow->copied == copied && !flow->doubt && !after(skops->rcv_nxt, flow->stream.next) &&
	       !after(flow->stream.start, copied) && setting(WORKING);
}

/* Hook B. */
static __always_inline void sending(struct bpf_sock_ops *skops)
{
	struct key key = {};
	struct flow *flow;
	void *sk;

	/* The kernel only asks how large a segment may be. */
	if (skops->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS)
		return;
	sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	make_key(skops, &key);
	flow = flow_of(sk, &key);
	if (flow && flow->lowat > 1 && !is_settled(skops, flow, copied_seq(sk)))
		settle(skops, sk, &key, flow, NO_DOUBT, !setting(WORKING));
}

static __always_inline bool is_in_namespace(void *sk)
{
	void *net = NULL;
	u32 inode = 0;

	READ(net, sk, OFF_NET);
	READ(inode, net, OFF_NET_INODE);
	return inode == setting(NETNS);
}

/*
 * Begin to follow. Not where another socket has the same addresses, in a VRF or by a link, and a mark that is up; nor where
 * segments cannot be marked: they are signed (MD5, AO), or there is ECN without timestamps.
 */
static __always_inline bool arm(struct key *key, void *sk, u32 seq, u32 flags)
{
	struct flow flow = {
		.turn = bpf_get_prandom_u32(), .lowat = 1, .answered = seq, .copied = seq, .flags = flags
	};
	struct flow *other = bpf_map_lookup_elem(sockets_map, key);
	u16 header = 0;
	u8 ecn = 0;

	if (other && other->lowat > 1)
		return false;
	READ(header, sk, OFF_HEADER_LEN);
	READ(ecn, sk, OFF_ECN_FLAGS);
	flow.ecn = ecn & ECN_MODES;
	if (header != HEADER_STAMPED && (header != HEADER_PLAIN || flow.ecn))
		return false;
	flow.sk = (u64)(long)sk;
	begin(&flow.stream, seq);
	if (bpf_map_update_elem(sockets_map, key, &flow, BPF_ANY))
		return false;
	count(OPTED_IN, 1);
	return true;
}

static __always_inline void established(struct bpf_sock_ops *skops, u32 port)
{
	u32 now = skops->bpf_sock_ops_cb_flags, wanted_flags = PARSE_FLAG | STATE_FLAG;
	void *sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	struct key key = {};

	if (!setting(WORKING) || !is_our_port(port) || !is_in_namespace(sk) || is_taken(sk))
		return;
	make_key(skops, &key);
	/* Without ports the callbacks wait for an application that opts in. */
	if (!setting(ARM_PORTS) || arm(&key, sk, skops->rcv_nxt, (wanted_flags | WRITE_FLAG) & ~now))
		bpf_sock_ops_cb_flags_set(skops, now | wanted_flags);
}

static __always_inline void closed(struct bpf_sock_ops *skops)
{
	void *sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	struct key key = {};

	make_key(skops, &key);
	if (flow_of(sk, &key))
		bpf_map_delete_elem(sockets_map, &key);
}

int autolowat_solo(struct bpf_sock_ops *skops)
{
	switch (skops->op) {
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		parsed(skops);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		sending(skops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(skops, skops->local_port);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (ARM_ACTIVE)
			established(skops, bpf_ntohl(skops->remote_port));
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (skops->args[1] == BPF_TCP_CLOSE)
			closed(skops);
		break;
	}
	return 1;
}

/* --- cgroup/setsockopt: the application opts in --- */

/* Whether everything that has come has been read: the quiet point at which a program may begin to follow. */
static __always_inline bool is_drained(void *sk)
{
	void *backlog = NULL;
	u32 received = 0;

	READ(received, sk, OFF_RCV_NXT);
	READ(backlog, sk, OFF_BACKLOG_TAIL);
	return received == copied_seq(sk) && !backlog;
}

static __always_inline int start(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw)
{
	struct key key = {};
	struct flow *flow;
	u32 next = 0, added = PARSE_FLAG | STATE_FLAG;
	u8 now = 0;

	read_key(raw, &key);
	flow = flow_of(raw, &key);
	if (!setting(WORKING) || (flow && !flow->doubt) || !is_in_namespace(raw))
		return 0;
	if (!is_drained(raw))
		return -EUCLEAN;
	READ(now, raw, OFF_CB_FLAGS);
	/* Its connection was there before us, and an older kernel has no way to switch callbacks on now: a plain socket. */
	if (is_taken(raw) || ((now & added) != added && (!CAN_SET || set_flags(sk, raw, added, 0))))
		return 0;
	READ(next, raw, OFF_RCV_NXT);
	arm(&key, raw, next, WRITE_FLAG & ~now);
	return 0;
}

/* The flags stay until the next callback, which finds that it is over. */
static __always_inline void stop(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw, u32 doubt)
{
	struct key key = {};
	struct flow *flow;
	u32 before;
	int one = 1;

	read_key(raw, &key);
	flow = flow_of(raw, &key);
	if (!flow)
		return;
	bpf_spin_lock(&flow->lock);
	before = flow->lowat;
	flow->doubt = doubt ?: DOUBTS;
	/* SO_RCVLOWAT, ours or the application's, goes on to the kernel. */
	if (CAN_SET || ctx->level == SOL_SOCKET || !doubt)
		flow->lowat = 1;
	bpf_spin_unlock(&flow->lock);
#if CAN_SET
	if (before > 1)
		bpf_setsockopt(sk, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
#endif
}

#include "autolowat/optin.h"

int autolowat_sockopt(struct bpf_sockopt *ctx)
{
	return sockopt(ctx);
}
