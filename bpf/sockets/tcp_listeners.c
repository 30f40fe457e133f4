// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over TCP sockets that writes one record for each listener and each request socket.
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#include "sockets/iterator.h"
#include "sockets/membership.h"

int bpf_iter__tcp(struct bpf_iter_tcp_context *ctx)
{
	void *sk = ctx->sk_common;
	struct listener_record record = {};
	u8 state = 0;

	if (!sk)
		return 0;
	READ(state, sk, OFF_STATE);
	record.state = state;
	if (state == BPF_TCP_LISTEN) {
		READ(record.cookie, sk, OFF_COOKIE);
		read_membership(&record.membership, sk);
		READ(record.accept_queue, sk, OFF_ACCEPT_QUEUE);
		READ(record.backlog, sk, OFF_BACKLOG);
		READ(record.half_open, sk, OFF_HALF_OPEN);
	} else if (state == BPF_TCP_NEW_SYN_RECV) {
		void *listener = NULL;

		READ(listener, sk, OFF_LISTENER);
		READ(record.cookie, listener, OFF_COOKIE);
	} else {
		return 0;
	}
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
