/* SPDX-License-Identifier: GPL-2.0 */
/*
 * UDP flows: datagrams of one address pair stay with the socket that got the first of them.
 *
 * Compiled only where a group keeps flows (FLOWS). The map `flows` has a word for each: the generation and the slot
 * that it belongs to, and when a datagram was last seen. A flow whose socket has closed is chosen anew. With QUIC, what a
 * datagram shows of its connection comes first (quic.h).
 */
#pragma once

#include "abi.h"

#ifdef QUIC
#include "udp/quic_packet.h"
#else
struct datagram {};
#endif

enum flow_counter {
	FLOWS_NEW,    /* recorded */
	FLOWS_KEPT,   /* a datagram that went where its flow belongs */
	FLOWS_GONE,   /* a recorded flow whose socket is closed */
	FLOWS_LEARNT, /* a connection ID */
	FLOWS_MOVED,  /* a connection whose client has another address by now */
	FLOWS_OLDER,  /* a datagram of an unknown connection, which the generation before may know */
};

enum {
	UNITS_FRESH = 1000000000 >> UNIT_SHIFT, /* about a second: how often `seen` is written */
	IPV4_ADDRESSES = 12,			/* offset of the source address, which the destination follows */
	IPV6_ADDRESSES = 8,
};

struct flow {
	struct flow_key key;
	bool is_known; /* whether `key` could be read */
	u32 slot;      /* that was selected */
	struct datagram datagram;
};

static __always_inline void note_slot(struct sk_reuseport_md *ctx, struct flow *flow, u32 slot)
{
	flow->slot = forget(slot, ctx->hash);
}

static __always_inline void count_flow(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(MAP(FLOW_COUNTERS_FD), &counter);

	if (value)
		*value += 1;
}

static __always_inline u32 flow_clock(void)
{
	return bpf_ktime_get_ns() >> UNIT_SHIFT;
}

static __always_inline bool read_flow_key(struct sk_reuseport_md *ctx, struct flow_key *key)
{
	u16 *port = ctx->data;
	u32 pair[2];

	if ((void *)(port + 1) > ctx->data_end)
		return false;
	key->port = *port;
	if (ctx->eth_protocol != bpf_htons(ETH_P_IP))
		return !bpf_skb_load_bytes_relative(ctx, IPV6_ADDRESSES, key, 32, BPF_HDR_START_NET);
	if (bpf_skb_load_bytes_relative(ctx, IPV4_ADDRESSES, pair, sizeof(pair), BPF_HDR_START_NET))
		return false;
	*(u32 *)key->source = pair[0];
	*(u32 *)key->destination = pair[1];
	return true;
}

#define count_older() count_flow(FLOWS_OLDER)

/*
 * Select a recorded slot. Returns whether its socket is still open. Who makes a generation has the flows forgotten that
 * have its place among GENERATIONS, so that they can only be its own.
 */
static __always_inline bool select_recorded(struct sk_reuseport_md *ctx, struct flow_word word)
{
	u32 index = word.generation % GENERATIONS, slot = word.slot;
	void *sockarray = bpf_map_lookup_elem(generations_map, &index);

	if (!sockarray || bpf_sk_select_reuseport(ctx, sockarray, &slot, 0)) {
		count_flow(FLOWS_GONE);
		return false;
	}
	count_flow(FLOWS_KEPT);
	return true;
}

#ifdef QUIC
#include "udp/quic.h"
#else
#define keep_connection(ctx, flow) false
#define learn_id(ctx, flow, word) ((void)(word))
#define is_later(flow) ((void)(flow), false)
#define may_be_recorded(flow) true
#endif

/*
 * Select the socket that the flow belongs to. Returns whether that was done. What the tool sends itself belongs to none,
 * whatever was recorded for its port before, and is not recorded.
 */
static __always_inline bool keep_flow(struct sk_reuseport_md *ctx, struct flow *flow)
{
	struct flow_word *word, found;
	u32 now;

	if (is_steered(ctx))
		return false;
	if (keep_connection(ctx, flow))
		return true;
	flow->is_known = read_flow_key(ctx, &flow->key);
	word = flow->is_known ? bpf_map_lookup_elem(MAP(FLOWS_FD), &flow->key) : NULL;
	if (!word)
		return false;
	*(u64 *)&found = *(volatile u64 *)word;
	if (!select_recorded(ctx, found))
		return false;
	now = flow_clock();
	/* Only this half: the element may be another flow's by now, because an LRU map uses it again at once. */
	if (now - found.seen >= UNITS_FRESH)
		word->seen = now;
	learn_id(ctx, flow, found);
	return true;
}

static __always_inline void record_flow(struct flow *flow, u32 generation)
{
	struct flow_word word = { .seen = flow_clock(), .slot = flow->slot, .generation = generation };

	if (!flow->is_known || !may_be_recorded(flow))
		return;
	bpf_map_update_elem(MAP(FLOWS_FD), &flow->key, &word, BPF_ANY);
	count_flow(FLOWS_NEW);
}
