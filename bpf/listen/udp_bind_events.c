// SPDX-License-Identifier: GPL-2.0
/*
 * Tells of each UDP socket that is bound to a port that somebody waits for: a program of the cgroup hooks
 * INET4_POST_BIND and INET6_POST_BIND, which run when the socket is in its tables.
 */
#include "listen/listen_events.h"

#define IPPROTO_UDP 17

static u64 (*netns_cookie)(void *ctx) = (void *)BPF_FUNC_get_netns_cookie;

int udp_bind_events(struct bpf_sock *ctx)
{
	struct listen_event event = { .port = ctx->src_port };

	if (ctx->protocol == IPPROTO_UDP && is_wanted(netns_cookie(ctx), ctx->src_port))
		tell(&event);
	return 1;
}
