// SPDX-License-Identifier: GPL-2.0
/* An iterator over TCP sockets that ends those in the map of targets, and writes what came of it. */
#include "destroy.h"

int bpf_iter__tcp(struct bpf_iter_tcp_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	struct outcome outcome = {};
	void *sk = ctx->sk_common;

	if (!sk)
		return 0;
	outcome.cookie = socket_cookie(sk);
	if (!is_target(sk, outcome.cookie))
		return 0;
	outcome.error = bpf_sock_destroy(sk);
	bpf_seq_write(meta->seq, &outcome, sizeof(outcome));
	return 0;
}
