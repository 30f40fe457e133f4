// SPDX-License-Identifier: GPL-2.0
/* An iterator over TCP sockets that ends those in the map of targets, and writes what came of it. */
#include "sockets/destroy.h"

int bpf_iter__tcp(struct bpf_iter_tcp_context *ctx)
{
	return end_target(ctx->meta, ctx->sk_common);
}
