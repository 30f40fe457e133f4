// SPDX-License-Identifier: GPL-2.0
/*
 * Reads the source connection IDs that QUIC servers put into their Handshake packets (cgroup_skb/egress).
 *
 * Only long headers tell how long an ID is, and the client uses it in every packet from then on. Only answers to a
 * recorded flow count, so that nobody else can say. A server that answers from a socket that it connected to the client
 * takes the connection out of the reuseport group's sight: then the ID itself is learnt here as well.
 */
#include "abi.h"
#include "udp/quic_packet.h"
#include "udp/quic_lengths.h"

enum {
	PASS = 1,
	ETH_P_IP = 0x0800,
	ETH_P_IPV6 = 0x86dd,
	UDP = 17,
	IPV4_LEAST = 20,
	IPV4_PROTOCOL = 9,
	IPV4_SOURCE = 12,
	IPV4_DESTINATION = 16,
	IPV6_SIZE = 40,
	IPV6_NEXT = 6,
	IPV6_SOURCE = 8,
	IPV6_DESTINATION = 24,
	UDP_SIZE = 8,
};

/*
 * The offset of the UDP header; 0 for other packets. An extension header hides the UDP header: servers of QUIC send none.
 */
static __always_inline u32 udp_offset(struct __sk_buff *skb)
{
	u8 *ip = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (ip + IPV4_LEAST > end || ip[IPV4_PROTOCOL] != UDP)
			return 0;
		return (ip[0] & 0x0f) * 4;
	}
	if (skb->protocol != bpf_htons(ETH_P_IPV6) || ip + IPV6_SIZE > end || ip[IPV6_NEXT] != UDP)
		return 0;
	return IPV6_SIZE;
}

/* The key of the flow that a packet answers. */
static __always_inline bool read_answered(struct __sk_buff *skb, struct flow_key *key)
{
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return !bpf_skb_load_bytes(skb, IPV6_SOURCE, key->destination, 16) &&
		       !bpf_skb_load_bytes(skb, IPV6_DESTINATION, key->source, 16);
	return !bpf_skb_load_bytes(skb, IPV4_SOURCE, key->destination, 4) &&
	       !bpf_skb_load_bytes(skb, IPV4_DESTINATION, key->source, 4);
}

static __always_inline void learn_id(struct __sk_buff *skb, u32 offset, u32 length, struct flow_word word)
{
	struct connection connection = { .word = word };
	struct id_bytes bytes = {};
	struct connection_id id;

	if (read_id_bytes(skb, offset, &bytes))
		return;
	cut_id(&id, &bytes, length);
	bpf_map_update_elem(MAP(CONNECTIONS_FD), &id, &connection, BPF_ANY);
}

/* Read an integer of variable length (RFC 9000, section 16), and skip it. Returns 0, or a negative error. */
static __always_inline int read_integer(struct __sk_buff *skb, u32 *offset, u64 *value)
{
	u64 bytes;
	u32 size;

	if (bpf_skb_load_bytes(skb, *offset, &bytes, sizeof(bytes)))
		return -1;
	bytes = bpf_ntohll(bytes);
	size = 1 << (bytes >> 62);
	*value = (bytes & (~0ULL >> 2)) >> (64 - 8 * size);
	*offset += size;
	return 0;
}

/*
 * Where the source ID of a Handshake packet is, with its length before it: of the first packet of a datagram, or of the
 * one behind an Initial packet. 0 for none.
 *
 * An Initial packet alone does not count. A server that refuses a connection answers with one whose source ID is the one
 * that the client made up (nginx does, for an invalid token).
 */
static __always_inline u32 source_id(struct __sk_buff *skb, u32 offset)
{
	u8 head[LONG_HEAD], length;
	u64 token, rest;

	if (bpf_skb_load_bytes(skb, offset, head, sizeof(head)) || !(head[0] & LONG_HEADER))
		return 0;
	if (packet_type(head) == TYPE_INITIAL) {
		offset += DESTINATION_ID + head[DESTINATION_LENGTH];
		if (bpf_skb_load_bytes(skb, offset, &length, 1))
			return 0;
		offset += 1 + length;
		if (read_integer(skb, &offset, &token) || token || read_integer(skb, &offset, &rest))
			return 0;
		offset += rest;
		if (bpf_skb_load_bytes(skb, offset, head, sizeof(head)) || !(head[0] & LONG_HEADER))
			return 0;
	}
	return packet_type(head) == TYPE_HANDSHAKE ? offset + DESTINATION_ID + head[DESTINATION_LENGTH] : 0;
}

/* The packets at an offset, in an answer to a flow that belongs to `word`. */
static __always_inline void read_packets(struct __sk_buff *skb, u32 offset, struct flow_word word)
{
	struct bpf_sock *sk = skb->sk;
	u32 *known;
	u8 length;

	offset = source_id(skb, offset);
	if (!offset || bpf_skb_load_bytes(skb, offset, &length, 1) || length > CONNECTION_ID_MAX)
		return;
	known = quic_element(word.generation % GENERATIONS);
	if (known && *known != length)
		*known = length;
	if (length && sk && sk->state == BPF_TCP_ESTABLISHED)
		learn_id(skb, offset + 1, length, word);
}

int quic_egress(struct __sk_buff *skb)
{
	u32 *port, offset = udp_offset(skb);
	struct flow_word *word, found;
	struct flow_key key = {};
	u16 ports[2];

	if (!offset || bpf_skb_load_bytes(skb, offset, ports, sizeof(ports)))
		return PASS;
	port = quic_element(QUIC_PORT);
	if (!port || ports[0] != *port)
		return PASS;
	key.port = ports[1];
	if (!read_answered(skb, &key))
		return PASS;
	word = bpf_map_lookup_elem(MAP(FLOWS_FD), &key);
	if (!word)
		return PASS;
	*(u64 *)&found = *(volatile u64 *)word;
	read_packets(skb, offset + UDP_SIZE, found);
	return PASS;
}
