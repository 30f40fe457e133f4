/* SPDX-License-Identifier: GPL-2.0 */
/*
 * QUIC: a connection stays with its socket also when its client's address changes (NAT rebinding).
 *
 * Compiled only where a group keeps connections (QUIC, beside FLOWS). The map `connections` has the connection IDs that
 * clients use, and where each belongs. Nobody tells how long the ID of a short header is: the server's own long headers
 * do, as they leave (quic_egress.c writes `quic`). An ID is learnt when a datagram of a recorded flow has it after the
 * client's first flight. So a flood of Initial packets teaches no ID and evicts none.
 */
#pragma once

#include "udp/quic_lengths.h"

enum {
	UDP_HEADER = 8,
	INITIAL_LEAST = 1200, /* a server discards smaller ones (RFC 9000, section 14.1) */
};

static __always_inline void read_long_header(struct sk_reuseport_md *ctx, struct datagram *datagram,
					     const u8 head[LONG_HEAD])
{
	u32 type = packet_type(head);

	datagram->length = head[DESTINATION_LENGTH];
	datagram->has_id = datagram->length && datagram->length <= CONNECTION_ID_MAX && type != TYPE_NEGOTIATION &&
			   !read_id_bytes(ctx, UDP_HEADER + DESTINATION_ID, &datagram->bytes);
	if (type == TYPE_INITIAL || type == TYPE_UNKNOWN)
		datagram->kind = ctx->len >= UDP_HEADER + INITIAL_LEAST ? DATAGRAM_NEW : DATAGRAM_OTHER;
	else if (type == TYPE_0RTT || type == TYPE_HANDSHAKE)
		datagram->kind = DATAGRAM_LATER;
	datagram->may_teach = type == TYPE_HANDSHAKE;
}

static __always_inline void read_packet(struct sk_reuseport_md *ctx, struct datagram *datagram)
{
	u8 head[LONG_HEAD];

	if (bpf_skb_load_bytes(ctx, UDP_HEADER, head, sizeof(head)))
		return;
	if (head[0] & LONG_HEADER) {
		read_long_header(ctx, datagram, head);
		return;
	}
	/* Every packet with a short header has that many: what header protection samples alone is 16 (RFC 9001, 5.4.2). */
	datagram->is_short = true;
	datagram->has_id = !read_id_bytes(ctx, UDP_HEADER + AFTER_FIRST_BYTE, &datagram->bytes);
	if (datagram->has_id && head[0] & FIXED_BIT) {
		datagram->kind = DATAGRAM_LATER;
		datagram->may_teach = true;
	}
}

static __always_inline struct connection *look_up(struct datagram *datagram, u32 length)
{
	struct connection_id id;

	cut_id(&id, &datagram->bytes, length);
	return bpf_map_lookup_elem(MAP(CONNECTIONS_FD), &id);
}

/* The connection of a short header, whose ID is as long as the servers of one of three generations make theirs. */
static __always_inline struct connection *find_short(struct datagram *datagram)
{
	u32 working = choice(CHOICE_WORKING), canary = choice(CHOICE_CANARY);
	u32 first = id_length(working), second = id_length(working - 1), third = canary ? id_length(canary) : 0;
	struct connection *found = first ? look_up(datagram, first) : NULL;

	if (!found && second && second != first)
		found = look_up(datagram, second);
	if (!found && third && third != first && third != second)
		found = look_up(datagram, third);
	return found;
}

/* The flow of a connection: written when its client's address moved, and once a second. */
static __always_inline void note_path(struct sk_reuseport_md *ctx, struct connection *connection, struct flow_word word,
				      struct flow *flow)
{
	struct flow_word *recorded;
	u32 now = flow_clock();

	if (connection->path == ctx->hash && now - word.seen < UNITS_FRESH)
		return;
	if (connection->path && connection->path != ctx->hash)
		count_flow(FLOWS_MOVED);
	word.seen = now;
	connection->word.seen = now;
	connection->path = ctx->hash;
	if (!read_flow_key(ctx, &flow->key))
		return;
	/* To find an element of an LRU map takes a fraction of the time that it takes to put one in. */
	recorded = bpf_map_lookup_elem(MAP(FLOWS_FD), &flow->key);
	if (recorded && recorded->slot == word.slot && recorded->generation == word.generation)
		recorded->seen = now;
	else
		bpf_map_update_elem(MAP(FLOWS_FD), &flow->key, &word, BPF_ANY);
}

/* Select the socket that the connection belongs to, whatever its address. Returns whether that was done. */
static __always_inline bool keep_connection(struct sk_reuseport_md *ctx, struct flow *flow)
{
	struct datagram *datagram = &flow->datagram;
	struct connection *connection;
	struct flow_word word;

	read_packet(ctx, datagram);
	datagram->kind = forget(datagram->kind, ctx->hash);
	datagram->length = forget(datagram->length, ctx->hash);
	datagram->is_short = forget(datagram->is_short, ctx->hash);
	datagram->may_teach = forget(datagram->may_teach, ctx->hash);
	if (!datagram->has_id)
		return false;
	connection = datagram->is_short ? find_short(datagram) : look_up(datagram, datagram->length);
	if (!connection)
		return false;
	*(u64 *)&word = *(volatile u64 *)&connection->word;
	if (!select_recorded(ctx, word))
		return false;
	note_path(ctx, connection, word, flow);
	return true;
}

/* A datagram of a recorded flow has an ID that is not known: it is one of the same connection. */
static __always_inline void learn_id(struct sk_reuseport_md *ctx, struct flow *flow, struct flow_word word)
{
	struct connection connection = { .word = word, .path = ctx->hash };
	u32 length = id_length(word.generation);
	struct connection_id id;

	if (!flow->datagram.may_teach || !flow->datagram.has_id || !length || length > CONNECTION_ID_MAX)
		return;
	if (!flow->datagram.is_short && flow->datagram.length != length)
		return;
	cut_id(&id, &flow->datagram.bytes, length);
	if (!bpf_map_update_elem(MAP(CONNECTIONS_FD), &id, &connection, BPF_ANY))
		count_flow(FLOWS_LEARNT);
}

#define is_later(flow) ((flow)->datagram.kind == DATAGRAM_LATER)
#define may_be_recorded(flow) ((flow)->datagram.kind != DATAGRAM_OTHER)
