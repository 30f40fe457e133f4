// SPDX-License-Identifier: GPL-2.0
/*
 * AutoLOWAT on a stock kernel, when both ends run it (docs/autolowat.md):
 *
 * 1. Both ends put an option into SYN and SYN+ACK; the client repeats it until it has sent data.
 * 2. The sender marks segments with data by the option: where a frame of several segments begins and where it ends, as
 *    `autolowat_egress` follows them; all of them where it cannot know (ARM_PORTS is 0: the application opts in). A
 *    marked segment misses the receiver's header prediction, and so the receiver's program runs with the socket
 *    locked before the data is queued.
 * 3. `autolowat_ingress` has read the payload by then and knows where frames end.
 * 4. `autolowat_paired` sets SO_RCVLOWAT: 1 when the queue holds a whole frame, else what is missing.
 * 5. It also runs whenever the receiver is about to send anything, which it does after data has come, marked or
 *    not, not later than the delayed ACK. Whatever went wrong is mended there.
 *
 * ROLE is what this end does: RECEIVES, SENDS or both.
 */
#ifndef FRAMES_MAX
#define FRAMES_MAX 256
#endif
#include "autolowat/autolowat.h"

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
 * Less than what the window still takes: a sender waits until a segment fits, which is the smaller of the MSS that we
 * announced and half of the window.
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

/*
 * recv() on a blocking socket looks at the mark once, when it is called, and sleeps until so much has come, whatever the
 * mark is by then. After a reader took part of a frame the mark is too high until the next segment, and there is no
 * callback for that: such a recv() could sleep for good. One that is not accepted yet may become a blocking one.
 */
static __always_inline bool may_sleep_in_recv(void *sk)
{
	void *socket = NULL, *file = NULL;
	u32 flags = 0;

	READ(socket, sk, OFF_SOCKET);
	if (!socket)
		return true;
	READ(file, socket, OFF_FILE);
	if (!file)
		return true;
	READ(flags, file, OFF_FILE_FLAGS);
	return !(flags & NONBLOCK);
}

/* The mark for what has come so far. */
static __always_inline u32 wanted(void *sk, struct stream *stream, struct state *state)
{
	u32 copied = copied_seq(sk), most, missing;

	/* Nothing waits; or a whole frame does, of which the reader may take a part and come back. */
	if (copied == stream->next || after(stream->start, copied) || is_blind(stream))
		return 1;
	if (!after(goal(stream), copied) || may_sleep_in_recv(sk))
		return 1;
	missing = goal(stream) - copied;
	most = reachable(sk, copied);
	if (missing <= most)
		return missing;
	/* The window moves with each segment, but the mark need not. */
	return state->lowat > most / 2 && state->lowat <= most ? state->lowat : most;
}

/*
 * All that came has been followed and ends with a frame, for which the mark is 1. Without the lock: what changes meanwhile
 * has its own callback, and a mark of 1 is never wrong.
 */
static __always_inline bool is_settled(struct bpf_sock_ops *skops, struct state *state)
{
	return state->lowat == 1 && !state->doubt && !state->finished && state->stream.start == skops->rcv_nxt &&
	       state->stream.next == skops->rcv_nxt;
}

/* With the socket locked: bring SO_RCVLOWAT up to date, or give up. */
static __always_inline void settle(struct bpf_sock_ops *skops, struct state *state)
{
	struct stream stream;
	u32 doubt, finished;

	if (!state->armed || is_settled(skops, state))
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
		set_lowat(skops, state, wanted(raw_sock(skops, OFF_SOCK_OPS_SK), &stream, state));
}

/* Nothing has come since: there is nothing to mend. */
static __always_inline void settle_on_sending(struct bpf_sock_ops *skops, struct state *state)
{
	u32 received = skops->rcv_nxt;

	if (state->settled == received && !state->doubt && !state->finished)
		return;
	settle(skops, state);
	state->settled = received;
}

static __always_inline void arm(struct state *state, u32 seq)
{
	bpf_spin_lock(&state->lock);
	begin(&state->stream, seq);
	state->turn++;
	bpf_spin_unlock(&state->lock);
	state->doubt = 0;
	state->lowat = 1;
	state->settled = seq;
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

/*
 * What a receiver must hear of with its socket locked: where a frame of several segments begins, and where it ends. The
 * rest of such a frame, and frames of one segment, need no mark. Whether a frame will be of one segment is a
 * guess: as the one before. A wrong one costs a wake-up, because the next segment has the mark then.
 */
static __always_inline bool touches_boundary(struct bpf_sock_ops *skops, struct state *state)
{
	struct stream *out = &state->out;

	if (!state->out_known)
		return true;
	/* Perhaps not new data. */
	if (skops->snd_nxt != out->next || skops->retrans_out || skops->lost_out)
		return true;
	/* The device, or the kernel on its behalf, may cut this into several segments. */
	if (out->start == out->next)
		return !state->out_single || skops->skb_len + OPTION_LENGTH > skops->mss_cache;
	return !state->out_told || !out->known || !after(out->end, out->next + skops->skb_len);
}

static __always_inline bool wants_mark(struct bpf_sock_ops *skops, struct state *state)
{
	bool has_data = skops->skb_len > 0;

	if (state->announce) {
		/* The peer will know by our first data. */
		if (has_data)
			state->announce = 0;
		return true;
	}
	return has_data && ROLE & SENDS && state->peer & RECEIVES && touches_boundary(skops, state);
}

static __always_inline void reserve(struct bpf_sock_ops *skops)
{
	/* The kernel only asks how large a segment may be. */
	bool sizing = skops->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS;
	struct state *state;
	bool mark;

	if (sizing && ROLE & SENDS) {
		mark = true;
	} else if (!sizing && skops->skb_tcp_flags & TCP_SYN) {
		mark = wants_option(skops);
	} else {
		state = state_of(skops, 0);
		if (!state)
			return;
		if (!sizing)
			settle_on_sending(skops, state);
		mark = wants_mark(skops, state);
	}
	if (mark && setting(WORKING))
		bpf_reserve_hdr_opt(skops, OPTION_LENGTH, 0);
}

static __always_inline void write(struct bpf_sock_ops *skops)
{
	struct option option = { OPTION_KIND, OPTION_LENGTH, { OPTION_ID >> 8, (OPTION_ID & 0xff) | ROLE } };

	bpf_store_hdr_opt(skops, &option, sizeof(option), 0);
}

static __always_inline void established(struct bpf_sock_ops *skops, bool active)
{
	u32 peer = peer_role(skops, 0), port = active ? bpf_ntohl(skops->remote_port) : skops->local_port;
	struct state *state;

	/* Another program may have callbacks of its own on other ports. */
	if (!is_our_port(port))
		return;
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
	begin(&state->out, skops->snd_nxt);
	state->out_known = ARM_PORTS;
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

/* The state of a packet's connection, and its socket; or NULL. */
static __always_inline struct state *state_of_packet(struct __sk_buff *skb, struct bpf_sock **sk)
{
	*sk = skb->sk;
	if (!*sk)
		return NULL;
	*sk = bpf_sk_fullsock(*sk);
	return *sk ? bpf_sk_storage_get(sockets_map, *sk, 0, 0) : NULL;
}

struct segment {
	u32 seq, payload, length;
	u32 flags;
	u32 role;	/* of the mark, or 0 */
};

/* The headers are in the linear area, where tcp_v4_rcv() and tcp_v6_rcv() have pulled them. */
static __always_inline bool read_segment(struct __sk_buff *skb, struct segment *segment)
{
	u8 *ip = (u8 *)(long)skb->data, *end = (u8 *)(long)skb->data_end, *tcp, *last;
	u32 offset = 40, options;

	if (ip + 40 > end)
		return false;
	if (ip[0] >> 4 == 4)
		offset = (ip[0] & 0xf) * 4;
	else if (ip[6] != 6)	/* extension headers */
		return false;
	tcp = ip + offset;
	if (tcp + 20 > end)
		return false;
	options = ((u32)(tcp[12] >> 4) * 4 - 20) & 0x3c;
	/* The kernel puts a program's option last. */
	last = tcp + 16 + options;
	if (last + sizeof(struct option) > end)
		return false;
	offset += 20 + options;
	segment->seq = bpf_ntohl(*(u32 *)(tcp + 4));
	segment->flags = tcp[13];
	segment->payload = offset;
	segment->length = skb->len - offset;
	segment->role = role_in((struct option *)last);
	return true;
}

/* A struct tcp_sock whose type the verifier knows (Linux 5.9). */
static void *(*skc_to_tcp_sock)(void *sk) = (void *)BPF_FUNC_skc_to_tcp_sock;

/* Whether TCP will take it: what lies outside of the window must not be believed. */
static __always_inline bool is_in_window(void *tcp, struct segment *segment)
{
	return segment->flags & TCP_ACK && !after(segment->seq, LOAD(u32, tcp, OFF_RCV_WUP) + LOAD(u32, tcp, OFF_RCV_WND));
}

/* A segment in sequence that ends the frame which others began must have the mark. */
static __always_inline bool misses_mark(struct segment *segment, struct stream *stream)
{
	u32 stop = segment->seq + segment->length;

	return after(stop, stream->next) && !after(segment->seq, stream->next) && stream->next != stream->start &&
	       (!stream->known || !after(stream->end, stop));
}

static __always_inline u32 look(struct __sk_buff *skb, struct segment *segment, struct stream *stream)
{
	u32 frames = 0, doubt;

	if (segment->flags & TCP_URG)
		return DOUBT_URGENT;
	if (!segment->role && misses_mark(segment, stream))
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
	struct bpf_sock *sk;
	struct state *state = state_of_packet(skb, &sk);
	u32 turn, doubt;
	void *tcp;

	if (!state || !state->armed || state->doubt)
		return 1;
	if (!read_segment(skb, &segment)) {
		state->doubt = DOUBT_UNMARKED;
		return 1;
	}
	tcp = skc_to_tcp_sock(sk);
	if (!tcp || segment.flags & (TCP_SYN | TCP_RST) || !is_in_window(tcp, &segment))
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

/* With the socket locked: where our own frames end. */
int autolowat_egress(struct __sk_buff *skb)
{
	struct segment segment = {};
	struct bpf_sock *sk;
	struct stream stream;
	struct state *state;
	u32 frames = 0;
	bool begins;

	if (!(ROLE & SENDS) || !ARM_PORTS)
		return 1;
	state = state_of_packet(skb, &sk);
	if (!state || !state->out_known)
		return 1;
	if (!read_segment(skb, &segment)) {
		state->out_known = 0;
		return 1;
	}
	if (!segment.length || !after(segment.seq + segment.length, state->out.next))
		return 1;
	stream = state->out;
	begins = stream.next == stream.start;
	if (segment.seq != stream.next ||
	    follow(skb, &stream, segment.seq, segment.payload, segment.length, &frames)) {
		state->out_known = 0;
		return 1;
	}
	if (begins)
		state->out_single = stream.next == stream.start;
	/* Where another frame ended in the same segment, the receiver had to leave its mark at 1. */
	state->out_told = stream.next != stream.start && !frames && (segment.role || state->out_told);
	state->out = stream;
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

#include "autolowat/optin.h"

int autolowat_sockopt(struct bpf_sockopt *ctx)
{
	return sockopt(ctx);
}
