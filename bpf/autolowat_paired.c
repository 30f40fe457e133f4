// SPDX-License-Identifier: GPL-2.0
/*
 * AutoLOWAT on a stock kernel, when both ends run it (docs/autolowat.md):
 *
 * 1. Both ends put an option into SYN and SYN+ACK; the client repeats it until it has sent data.
 * 2. The sender marks each segment with data by the option. A marked segment misses the receiver's header
 *    prediction, and so the receiver's program runs with the socket locked before the data is queued.
 * 3. `autolowat_ingress` has read the payload by then and knows where frames end.
 * 4. `autolowat_paired` sets SO_RCVLOWAT: 1 when the queue holds a whole frame, else what is missing.
 * 5. It also runs whenever the receiver is about to send anything, which it does after data has come, marked or
 *    not, not later than the delayed ACK. Whatever went wrong is mended there.
 *
 * ROLE is what this end does: RECEIVES, SENDS or both.
 */
#define FRAMES_MAX 256
#include "autolowat.h"

enum role { RECEIVES = 1, SENDS = 2 };

/* RFC 6994: an experimental option with a 16 bit identifier; its lowest bits are the sender's role. */
#define OPTION_KIND 254
#define OPTION_LENGTH 4
#define OPTION_ID 0x7a4c

struct option {
	u8 kind, length;
	u8 id[2];
};

#define OUR_FLAGS (BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG | BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG)
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define SYNS_WITH_OPTION 2	/* later ones go without: something may drop them for it */

static __always_inline u32 role_in(struct option *option)
{
	u32 id = option->id[0] << 8 | option->id[1];

	return option->kind == OPTION_KIND && option->length == OPTION_LENGTH && (id & ~3) == OPTION_ID ? id & 3 : 0;
}

/* The role in the option of the packet that the callback is about, or of the SYN; 0 without one. */
static __always_inline u32 peer_role(struct bpf_sock_ops *skops, u64 flags)
{
	u32 role;

#pragma unroll
	for (role = RECEIVES; role <= (RECEIVES | SENDS); role++) {
		struct option option = { OPTION_KIND, OPTION_LENGTH, { OPTION_ID >> 8, (OPTION_ID & 0xff) | role } };

		if (bpf_load_hdr_opt(skops, &option, sizeof(option), flags) == sizeof(option))
			return role;
	}
	return 0;
}

/* Whether the two ends have something to do with each other. */
static __always_inline bool fits(u32 peer)
{
	return (ROLE & RECEIVES && peer & SENDS) || (ROLE & SENDS && peer & RECEIVES);
}

static __always_inline void set_lowat(struct bpf_sock_ops *skops, struct state *state, u32 lowat)
{
	int value = lowat;

	if (lowat == state->lowat)
		return;
	if (bpf_setsockopt(skops, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value)))
		state->doubt = DOUBT_REFUSED;
	else
		state->lowat = lowat;
}

static __always_inline void give_up(struct bpf_sock_ops *skops, struct state *state, u32 doubt)
{
	set_lowat(skops, state, 1);
	state->armed = 0;
	if (doubt && doubt < DOUBTS)
		count(FAIL_OPENS + doubt, 1);
}

/*
 * What the window still takes, less what keeps a sender from sending: it waits until a segment fits, which is the
 * smaller of the MSS that we announced and half of the window.
 */
static __always_inline u32 reachable(void *sk, u32 copied)
{
	u32 wup = 0, window = 0, room, reserve;
	u16 advmss = 0;

	READ(wup, sk, OFF_RCV_WUP);
	READ(window, sk, OFF_RCV_WND);
	READ(advmss, sk, OFF_ADVMSS);
	room = wup + window - copied;
	reserve = advmss < room / 2 ? advmss : room / 2;
	return room > reserve ? room - reserve : 1;
}

/* The mark for what has come so far. */
static __always_inline u32 wanted(void *sk, struct stream *stream)
{
	u32 copied = copied_seq(sk), most, missing;

	/* Nothing waits; or a whole frame does, of which the reader may take a part and come back. */
	if (copied == stream->next || after(stream->start, copied) || is_blind(stream))
		return 1;
	if (!after(goal(stream), copied))
		return 1;
	missing = goal(stream) - copied;
	most = reachable(sk, copied);
	return missing < most ? missing : most;
}

/* With the socket locked: bring SO_RCVLOWAT up to date, or give up. */
static __always_inline void settle(struct bpf_sock_ops *skops, struct state *state)
{
	struct stream stream;
	u32 doubt, finished;

	if (!state->armed)
		return;
	bpf_spin_lock(&state->lock);
	stream = state->stream;
	doubt = state->doubt;
	finished = state->finished;
	bpf_spin_unlock(&state->lock);
	if (!doubt && after(skops->rcv_nxt, stream.next))
		doubt = DOUBT_ORDER;
	if (doubt || finished || !setting(WORKING))
		give_up(skops, state, doubt);
	else
		set_lowat(skops, state, wanted(raw_sock(skops, OFF_SOCK_OPS_SK), &stream));
}

static __always_inline void arm(struct state *state, u32 seq)
{
	bpf_spin_lock(&state->lock);
	begin(&state->stream, seq);
	state->turn++;
	bpf_spin_unlock(&state->lock);
	state->doubt = 0;
	state->lowat = 1;
	state->armed = 1;
	count(OPTED_IN, 1);
}

static __always_inline struct state *state_of(struct bpf_sock_ops *skops, u64 flags)
{
	struct bpf_sock *sk = skops->sk;

	return sk ? bpf_sk_storage_get(sockets_map, sk, 0, flags) : NULL;
}

/* Packets of a handshake, which have no state yet. */
static __always_inline bool wants_option(struct bpf_sock_ops *skops)
{
	if (!(skops->skb_tcp_flags & TCP_ACK))
		return skops->total_retrans < SYNS_WITH_OPTION;
	return fits(peer_role(skops, BPF_LOAD_HDR_OPT_TCP_SYN));
}

static __always_inline bool wants_mark(struct bpf_sock_ops *skops, struct state *state)
{
	if (state->announce)
		return true;
	if (!(ROLE & SENDS) || !(state->peer & RECEIVES))
		return false;
	return skops->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS || skops->skb_len > 0;
}

static __always_inline void reserve(struct bpf_sock_ops *skops)
{
	struct state *state;
	bool mark;

	if (skops->args[0] != BPF_WRITE_HDR_TCP_CURRENT_MSS && skops->skb_tcp_flags & TCP_SYN) {
		mark = wants_option(skops);
	} else {
		state = state_of(skops, 0);
		if (!state)
			return;
		settle(skops, state);
		mark = wants_mark(skops, state);
	}
	if (mark && setting(WORKING))
		bpf_reserve_hdr_opt(skops, OPTION_LENGTH, 0);
}

static __always_inline void write(struct bpf_sock_ops *skops)
{
	struct option option = { OPTION_KIND, OPTION_LENGTH, { OPTION_ID >> 8, (OPTION_ID & 0xff) | ROLE } };
	struct state *state;

	bpf_store_hdr_opt(skops, &option, sizeof(option), 0);
	if (skops->skb_tcp_flags & TCP_SYN)
		return;
	state = state_of(skops, 0);
	if (state && skops->skb_len > skops->skb_data_end - skops->skb_data)
		state->announce = 0;
}

static __always_inline void established(struct bpf_sock_ops *skops, bool active)
{
	u32 peer = peer_role(skops, 0), port = active ? bpf_ntohl(skops->remote_port) : skops->local_port;
	struct state *state;

	if (!fits(peer) || !setting(WORKING)) {
		bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags & ~OUR_FLAGS);
		return;
	}
	state = state_of(skops, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state)
		return;
	count(AGREED, 1);
	state->peer = peer;
	state->announce = active;
	state->flags = OUR_FLAGS;
	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags | OUR_FLAGS);
	if (ROLE & RECEIVES && peer & SENDS && ARM_PORTS && (!active || ARM_ACTIVE) &&
	    !is_taken(raw_sock(skops, OFF_SOCK_OPS_SK)))
		arm(state, skops->rcv_nxt);
}

int autolowat_paired(struct bpf_sock_ops *skops)
{
	struct state *state;

	switch (skops->op) {
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		if (setting(WORKING) && is_our_port(skops->local_port))
			bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags |
						  BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		if (setting(WORKING) && is_our_port(bpf_ntohl(skops->remote_port)))
			bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags |
						  BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		established(skops, true);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(skops, false);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		reserve(skops);
		break;
	case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
		write(skops);
		break;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		state = state_of(skops, 0);
		if (state)
			settle(skops, state);
		break;
	}
	return 1;
}

struct segment {
	u32 seq, payload, length;
	u32 flags;
	u32 role;	/* of the mark, or 0 */
};

/* The offset of the TCP header, or 0 for a packet of a shape that is not followed. */
static __always_inline u32 tcp_offset(struct __sk_buff *skb)
{
	u8 ip[40];

	if (bpf_skb_load_bytes(skb, 0, ip, 20))
		return 0;
	if (ip[0] >> 4 == 4)
		return (ip[0] & 0xf) * 4;
	if (ip[0] >> 4 == 6 && ip[6] == 6)
		return 40;
	return 0;
}

static __always_inline bool read_segment(struct __sk_buff *skb, struct segment *segment)
{
	u32 offset = tcp_offset(skb), header;
	struct option last;
	u8 tcp[20];

	if (!offset || bpf_skb_load_bytes(skb, offset, tcp, sizeof(tcp)))
		return false;
	header = offset + (tcp[12] >> 4) * 4;
	segment->seq = (u32)tcp[4] << 24 | (u32)tcp[5] << 16 | (u32)tcp[6] << 8 | tcp[7];
	segment->flags = tcp[13];
	segment->payload = header;
	segment->length = skb->len - header;
	segment->role = 0;
	if (skb->len < header)
		return false;
	/* The kernel puts a program's option last. */
	if (!bpf_skb_load_bytes(skb, header - sizeof(last), &last, sizeof(last)))
		segment->role = role_in(&last);
	return true;
}

/* Whether TCP will take it: what lies outside of the window must not be believed. */
static __always_inline bool is_in_window(void *sk, struct segment *segment)
{
	u32 wup = 0, window = 0;

	READ(wup, sk, OFF_RCV_WUP);
	READ(window, sk, OFF_RCV_WND);
	return segment->flags & TCP_ACK && !after(segment->seq, wup + window);
}

static __always_inline u32 look(struct __sk_buff *skb, struct segment *segment, struct stream *stream)
{
	u32 frames = 0, doubt;

	if (segment->flags & TCP_URG)
		return DOUBT_URGENT;
	if (!segment->role && after(segment->seq + segment->length, stream->next))
		return DOUBT_UNMARKED;
	doubt = follow(skb, stream, segment->seq, segment->payload, segment->length, &frames);
	if (frames)
		count(FRAMES, frames);
	else if (!doubt)
		count(SAVED, 1);
	return doubt;
}

int autolowat_ingress(struct __sk_buff *skb)
{
	struct segment segment = {};
	struct stream stream;
	struct bpf_sock *sk = skb->sk;
	struct state *state;
	u32 turn, doubt;

	if (!sk)
		return 1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 1;
	state = bpf_sk_storage_get(sockets_map, sk, 0, 0);
	if (!state || !state->armed || state->doubt)
		return 1;
	if (!read_segment(skb, &segment)) {
		state->doubt = DOUBT_UNMARKED;
		return 1;
	}
	if (segment.flags & (TCP_SYN | TCP_RST) || !is_in_window(raw_sock(skb, OFF_SKB_SK), &segment))
		return 1;
	if (segment.flags & TCP_FIN)
		state->finished = 1;
	if (!segment.length)
		return 1;

	bpf_spin_lock(&state->lock);
	stream = state->stream;
	turn = state->turn;
	bpf_spin_unlock(&state->lock);
	doubt = look(skb, &segment, &stream);
	bpf_spin_lock(&state->lock);
	if (state->turn != turn)
		doubt = DOUBT_RACE;
	state->stream = stream;
	state->turn++;
	state->doubt = doubt;
	bpf_spin_unlock(&state->lock);
	return 1;
}

static __always_inline int start(struct bpf_sock *sk, void *raw)
{
	struct state *state = bpf_sk_storage_get(sockets_map, sk, 0, 0);
	u32 next = 0;

	/* The other end has no tool, or marks nothing: the socket works as ever. */
	if (!state || !(ROLE & RECEIVES) || !(state->peer & SENDS) || state->armed || !setting(WORKING))
		return 0;
	if (!is_drained(raw))
		return -EUCLEAN;
	READ(next, raw, OFF_RCV_NXT);
	if (!is_taken(raw))
		arm(state, next);
	return 0;
}

static __always_inline void stop(struct bpf_sock *sk, void *raw, struct state *state)
{
	int one = 1;

	state->armed = 0;
	state->lowat = 1;
	bpf_setsockopt(sk, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
}

#include "autolowat_optin.h"

int autolowat_sockopt(struct bpf_sockopt *ctx)
{
	return sockopt(ctx);
}
