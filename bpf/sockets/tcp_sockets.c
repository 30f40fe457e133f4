// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over TCP sockets that writes one record for each: listeners, connections, request sockets and
 * TIME_WAIT. A socket that nobody has asked for its cookie before gets one here.
 */
#include "sockets/sockets.h"

static __always_inline void read_listener(struct socket_record *record, void *sk)
{
	READ(record->receive_queue, sk, OFF_ACCEPT_QUEUE);
	READ(record->send_queue, sk, OFF_BACKLOG);
}

/* As tcp_diag_get_info() of net/ipv4/tcp_diag.c has them; before the handshake lsndtime is not set. */
static __always_inline void read_connection(struct socket_record *record, void *sk)
{
	u32 received = 0, copied = 0, written = 0, acknowledged = 0, received_at = 0, sent_at = 0;
	u32 now = bpf_jiffies64();

	READ(received, sk, OFF_RCV_NXT);
	READ(copied, sk, OFF_COPIED_SEQ);
	READ(written, sk, OFF_WRITE_SEQ);
	READ(acknowledged, sk, OFF_SND_UNA);
	record->receive_queue = (s32)(received - copied) > 0 ? received - copied : 0;
	record->send_queue = written - acknowledged;
	if (record->tuple.state == BPF_TCP_SYN_SENT || record->tuple.state == BPF_TCP_CLOSE)
		return;
	READ(received_at, sk, OFF_LRCVTIME);
	READ(sent_at, sk, OFF_LSNDTIME);
	received_at = now - received_at;
	sent_at = now - sent_at;
	record->idle = received_at < sent_at ? received_at : sent_at;
}

int bpf_iter__tcp(struct bpf_iter_tcp_context *ctx)
{
	void *sk = ctx->sk_common;
	struct socket_record record = {};

	if (!sk)
		return 0;
	read_common(&record, sk, ctx->uid);
	/* Request and TIME_WAIT sockets are smaller structs, that begin with a sock_common only. */
	if (record.tuple.state == BPF_TCP_NEW_SYN_RECV) {
		READ(record.synack_us, sk, OFF_SNT_SYNACK);
	} else if (record.tuple.state != BPF_TCP_TIME_WAIT) {
		record.inode = read_inode(sk);
		if (record.tuple.state == BPF_TCP_LISTEN)
			read_listener(&record, sk);
		else
			read_connection(&record, sk);
	}
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
