// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over TCP sockets, each locked while it is looked at. Of those that AutoLOWAT follows it writes a record,
 * and while AutoLOWAT is not working it gives them back the low-water mark of 1. ENGINE_SOLO says whose they are.
 * CAN_SET is 0 where an iterator may not set socket options (before Linux 5.19).
 */
#define FRAMES_MAX 1
#define FRAMING_KIND 0
#define FRAMING_OFFSET 0
#define FRAMING_WIDTH 4
#define FRAMING_BIG 0
#define FRAMING_ADD 4
#define FRAMING_HEADER 4
#define FRAMING_MAX 4
#include "sockets/iterator.h"
#if ENGINE_SOLO
#include "autolowat/solo.h"
#else
#include "autolowat/native.h"
#endif

/* Read by Followed in reuseport_tool/kernel/autolowat.py. */
struct followed {
	u32 armed, lowat;
};

/* Whether the socket is at a mark of 1, as one that nobody follows. */
static __always_inline bool give_back(void *sk, u32 lowat, u32 flags)
{
#if CAN_SET
	int one = 1;

	if (lowat > 1 && bpf_setsockopt(sk, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one)))
		return false;
	set_flags(sk, sk, 0, flags);
	return true;
#else
	return lowat <= 1;
#endif
}

#if ENGINE_SOLO
static __always_inline bool look_at(void *sk, struct followed *followed)
{
	struct key key = {};
	struct flow *flow;

	read_key(sk, &key);
	flow = flow_of(sk, &key);
	if (!flow)
		return false;
	followed->armed = 1;
	if (!setting(WORKING) && give_back(sk, flow->lowat, flow->flags)) {
		followed->armed = 0;
		bpf_map_delete_elem(sockets_map, &key);
	}
	return true;
}
#else
static __always_inline bool look_at(void *sk, struct followed *followed)
{
	struct state *state = bpf_sk_storage_get(sockets_map, sk, 0, 0);

	if (!state)
		return false;
	if (!setting(WORKING) && state->armed && give_back(sk, 2, state->flags))
		state->armed = 0;
	followed->armed = state->armed;
	return true;
}
#endif

int bpf_iter__tcp(struct bpf_iter_tcp_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct followed followed = {};
	void *sk = ctx->sk_common;
	u8 tcp_state;

	if (!sk)
		return 0;
	tcp_state = *(u8 *)(sk + OFF_STATE);
	if (tcp_state == BPF_TCP_TIME_WAIT || tcp_state == BPF_TCP_NEW_SYN_RECV || tcp_state == BPF_TCP_LISTEN)
		return 0;
	if (!look_at(sk, &followed))
		return 0;
	READ(followed.lowat, sk, OFF_RCVLOWAT);
	bpf_seq_write(meta->seq, &followed, sizeof(followed));
	return 0;
}
