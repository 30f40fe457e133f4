// SPDX-License-Identifier: GPL-2.0
/* An iterator over UDP sockets that ends those in the map of targets, and writes what came of it. */
#include "sockets/destroy.h"

int bpf_iter__udp(struct bpf_iter_udp_context *ctx)
{
	return end_target(ctx->meta, ctx->udp_sk);
}
