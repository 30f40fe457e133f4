// SPDX-License-Identifier: GPL-2.0
/*
 * AutoLOWAT on a kernel with BPF_SOCK_OPS_RCVQ_CB (vagrant/kernel/): the program runs for every skb that is put on
 * the receive queue, in sequence, and after every recvmsg(). SO_RCVLOWAT is the end of the last whole frame in the
 * queue, and where there is none the end of the first one; while its header is incomplete, the header's.
 */
#ifndef FRAMES_MAX
#define FRAMES_MAX 100
#endif
#include "autolowat/native.h"

static void *(*to_kern_ctx)(void *) = (void *)CAST_ID;
static int (*set_rcvlowat)(void *, int) = (void *)RCVLOWAT_ID;

static __always_inline void give_up(struct bpf_sock_ops *skops, struct state *state, u32 doubt)
{
	set_rcvlowat(to_kern_ctx(skops), 1);
	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags & ~RCVQ_FLAG);
	state->armed = 0;
	if (doubt && doubt < DOUBTS)
		count(FAIL_OPENS + doubt, 1);
}

/* Where a segment begins: one that overlaps what is there already begins before rcv_nxt. */
static __always_inline u32 segment_seq(struct bpf_sock_ops *skops)
{
	void *skb = NULL;
	u32 seq = 0;

	READ(skb, skops, OFF_SOCK_OPS_SKB);
	READ(seq, skb, OFF_SKB_CB + OFF_CB_SEQ);
	return seq;
}

static __always_inline u32 queued(struct bpf_sock_ops *skops, struct stream *stream)
{
	u32 before = stream->frames, doubt;

	doubt = follow(skops, stream, segment_seq(skops), 0, skops->skb_len);
	if (stream->frames != before)
		count(FRAMES, stream->frames - before);
	else if (!doubt)
		count(SAVED, 1);
	return doubt || is_blind(stream) ? doubt ?: DOUBT_ORDER : NO_DOUBT;
}

static __always_inline u32 wanted(struct bpf_sock_ops *skops, struct stream *stream)
{
	u32 copied = copied_seq(raw_sock(skops, OFF_SOCK_OPS_SK));
	u32 until = after(stream->start, copied) ? stream->start : goal(stream);

	return after(until, copied) ? until - copied : 1;
}

static __always_inline void receive_queue(struct bpf_sock_ops *skops, struct state *state)
{
	struct stream stream = state->stream;
	/* Direct access is off: skb_data equals skb_data_end, and is NULL where there is no skb. */
	bool has_skb = skops->skb_data != NULL;
	u32 doubt = 0;

	if (!state->armed)
		return;
	if (has_skb && skops->skb_len)
		doubt = queued(skops, &stream);
	state->stream = stream;
	/* A FIN without data is an empty skb: nothing will follow. */
	if (doubt || (has_skb && !skops->skb_len) || !setting(WORKING))
		give_up(skops, state, doubt);
	else if (set_rcvlowat(to_kern_ctx(skops), wanted(skops, &stream)))
		give_up(skops, state, DOUBT_REFUSED);
}

static __always_inline void arm(struct state *state, u32 seq)
{
	begin(&state->stream, seq);
	state->flags = RCVQ_FLAG;
	state->armed = 1;
	count(OPTED_IN, 1);
}

static __always_inline void established(struct bpf_sock_ops *skops, u32 port)
{
	struct bpf_sock *sk = skops->sk;
	struct state *state;

	if (!sk || !setting(WORKING) || !is_our_port(port) || is_taken(raw_sock(skops, OFF_SOCK_OPS_SK)))
		return;
	state = bpf_sk_storage_get(sockets_map, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (state && bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags | RCVQ_FLAG) == 0)
		arm(state, skops->rcv_nxt);
}

int autolowat_native(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk;
	struct state *state;

	if (skops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		if (setting(ARM_PORTS))
			established(skops, skops->local_port);
	} else if (skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		if (setting(ARM_PORTS) && ARM_ACTIVE)
			established(skops, bpf_ntohl(skops->remote_port));
	} else if (skops->op == RCVQ_OP) {
		sk = skops->sk;
		state = sk ? bpf_sk_storage_get(sockets_map, sk, 0, 0) : NULL;
		if (state)
			receive_queue(skops, state);
	}
	return 1;
}

static __always_inline int start(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw)
{
	struct state *state;
	u32 next = 0;
	int error;

	if (!setting(WORKING) || is_taken(raw))
		return 0;
	state = bpf_sk_storage_get(sockets_map, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (!state || state->armed)
		return 0;
	error = set_flags(sk, raw, RCVQ_FLAG, 0);
	if (error)
		return error;
	READ(next, raw, OFF_RCV_NXT);
	arm(state, next);
	return 0;
}

static __always_inline void stop(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw, u32 doubt)
{
	struct state *state = bpf_sk_storage_get(sockets_map, sk, 0, 0);
	int one = 1;

	if (!state || !state->armed)
		return;
	state->armed = 0;
	set_flags(sk, raw, 0, RCVQ_FLAG);
	bpf_setsockopt(sk, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
	if (doubt)
		count(FAIL_OPENS + doubt, 1);
}

#include "autolowat/optin.h"

int autolowat_sockopt(struct bpf_sockopt *ctx)
{
	return sockopt(ctx);
}
