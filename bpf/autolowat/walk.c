// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over TCP sockets, each locked while it is looked at. Of those that AutoLOWAT follows it writes a record,
 * and while AutoLOWAT is not working it gives them back the low-water mark of 1. Listeners of the cgroup that
 * were there before get the callback with which an option is put into the SYN+ACK.
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
#include "autolowat/autolowat.h"

#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008
#define STATE_TIME_WAIT 6
#define STATE_LISTEN 10
#define STATE_NEW_SYN_RECV 12
#define DEPTH_MAX 32

/* Read by Followed in reuseport_tool/kernel/autolowat.py. */
struct followed {
	u32 armed, lowat;
};

static __always_inline bool is_in_cgroup(void *sk)
{
	void *cgroup = NULL, *node;
	u64 id;
	u32 i;

	READ(cgroup, sk, OFF_SK_CGROUP);
	for (i = 0; i < DEPTH_MAX && cgroup; i++) {
		asm volatile("" : "+r"(i));
		node = NULL;
		id = 0;
		READ(node, cgroup, OFF_CGROUP_NODE);
		READ(id, node, OFF_NODE_ID);
		if (id == CGROUP_ID)
			return true;
		/* The parent's css, which a struct cgroup begins with. */
		READ(cgroup, cgroup, OFF_CGROUP_PARENT);
	}
	return false;
}

static __always_inline void prepare_listener(void *sk)
{
	u32 port = *(u16 *)(sk + OFF_LOCAL_PORT);
	u32 flags;
	u8 now = 0;

	if (!LISTENER_FLAGS || !setting(WORKING) || !is_our_port(port) || !is_in_cgroup(sk))
		return;
	READ(now, sk, OFF_CB_FLAGS);
	flags = now | LISTENER_FLAGS;
	bpf_setsockopt(sk, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
}

static __always_inline void give_back(void *sk, struct state *state)
{
	int one = 1;
	u32 flags;
	u8 now = 0;

	/* Where the kernel refuses, the record says that it is still armed. */
	if (state->armed && bpf_setsockopt(sk, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one)))
		return;
	READ(now, sk, OFF_CB_FLAGS);
	flags = now & ~state->flags;
	bpf_setsockopt(sk, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags));
	state->armed = 0;
}

int bpf_iter__tcp(struct bpf_iter_tcp_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct followed followed = {};
	struct state *state;
	void *sk = ctx->sk_common;
	u8 tcp_state;

	if (!sk)
		return 0;
	tcp_state = *(u8 *)(sk + OFF_STATE);
	if (tcp_state == STATE_TIME_WAIT || tcp_state == STATE_NEW_SYN_RECV)
		return 0;
	if (tcp_state == STATE_LISTEN) {
		prepare_listener(sk);
		return 0;
	}
	state = bpf_sk_storage_get(sockets_map, sk, 0, 0);
	if (!state)
		return 0;
	if (!setting(WORKING))
		give_back(sk, state);
	followed.armed = state->armed;
	READ(followed.lowat, sk, OFF_RCVLOWAT);
	bpf_seq_write(meta->seq, &followed, sizeof(followed));
	return 0;
}
