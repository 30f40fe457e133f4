/* SPDX-License-Identifier: GPL-2.0 */
/* A segment as the tc program sees it: whose it is, what of it is data, and how it is marked. */
#pragma once
#include "autolowat/solo.h"

#define PACKET_HOST 0
#define PROTO_IP 0x0800
#define PROTO_IPV6 0x86dd
#define PROTO_TCP 6

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_ECE 0x40
#define TCP_CWR 0x80
/* With one of these a segment misses header prediction by itself. */
#define TCP_SLOW (TCP_FIN | TCP_URG | TCP_ECE | TCP_CWR)

struct segment {
	u32 seq, stop;
	u32 tcp; /* where the TCP header is in the skb */
	u32 payload;
	u32 flags;
};

static __always_inline bool is_for_us(u8 *tcp)
{
	return is_our_port(bpf_ntohs(*(u16 *)(tcp + 2))) || (ARM_ACTIVE && is_our_port(bpf_ntohs(*(u16 *)tcp)));
}

/* The length of the packet by its IP header, and where TCP begins; 0 for a packet that TCP would not get from here. */
static __always_inline u32 read_ip(struct __sk_buff *skb, u8 *ip, u32 *header)
{
	u32 total;

	if (skb->protocol == bpf_htons(PROTO_IP)) {
		*header = (ip[0] & 0xf) * 4;
		if (ip[0] >> 4 != 4 || *header < 20 || ip[9] != PROTO_TCP || *(u16 *)(ip + 6) & bpf_htons(0x3fff))
			return 0;
		total = bpf_ntohs(*(u16 *)(ip + 2));
	} else {
		*header = 40;
		if (ip[0] >> 4 != 6 || ip[6] != PROTO_TCP) /* with extension headers: not followed */
			return 0;
		total = bpf_ntohs(*(u16 *)(ip + 4));
		total += total ? 40 : 0;
	}
	/* Segments that were merged may be longer than the field can say. */
	return total ?: ~0;
}

static __always_inline void read_addresses(struct __sk_buff *skb, u8 *ip, u8 *tcp, struct key *key)
{
	key->remote_port = *(u16 *)tcp;
	key->local_port = *(u16 *)(tcp + 2);
	if (skb->protocol == bpf_htons(PROTO_IP)) {
		map_address(key->remote, *(u32 *)(ip + 12));
		map_address(key->local, *(u32 *)(ip + 16));
	} else {
		__builtin_memcpy(key->remote, ip + 8, 16);
		__builtin_memcpy(key->local, ip + 24, 16);
	}
}

/* Whether it is a segment with data for one of our ports. `link` is the length of the device's header. */
static __always_inline bool read_segment(struct __sk_buff *skb, u32 link, struct key *key, struct segment *segment)
{
	u8 *ip = (u8 *)(long)skb->data + link, *end = (u8 *)(long)skb->data_end, *tcp;
	u32 header, total, length = skb->len - link, least = 60;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return false;
	if (skb->protocol == bpf_htons(PROTO_IP))
		least = 40;
	else if (skb->protocol != bpf_htons(PROTO_IPV6))
		return false;
	if (ip + least > end) {
		/* Some drivers leave headers in pages. A packet that is too short is none of ours. */
		if (length < least || bpf_skb_pull_data(skb, link + least))
			return false;
		ip = (u8 *)(long)skb->data + link;
		end = (u8 *)(long)skb->data_end;
	}
	if (ip + 40 > end)
		return false;
	total = read_ip(skb, ip, &header);
	tcp = ip + header;
	if (!total || tcp + 20 > end || !is_for_us(tcp))
		return false;
	total = total == ~0 ? length : total;
	header += (tcp[12] >> 4) * 4;
	segment->flags = tcp[13];
	if (total > length || total <= header || (segment->flags & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK)
		return false;
	segment->seq = bpf_ntohl(*(u32 *)(tcp + 4));
	segment->stop = segment->seq + total - header;
	segment->tcp = (u64)tcp - (u64)(ip - link);
	segment->payload = link + header;
	read_addresses(skb, ip, tcp, key);
	return true;
}

/*
 * The ECE bit, and the urgent pointer less by as much, which leaves the checksum right. TCP ignores both, without ECN and
 * without URG. One write of eight bytes by the helper: a direct one would make every clone pay.
 */
static __always_inline long mark_ece(struct __sk_buff *skb, u32 tcp)
{
	u16 words[4]; /* flags, window, checksum, urgent pointer */
	u32 urgent;

	if (bpf_skb_load_bytes(skb, tcp + 12, words, sizeof(words)))
		return -1;
	urgent = bpf_ntohs(words[3]) + 0xffff - TCP_ECE;
	words[0] |= bpf_htons(TCP_ECE);
	words[3] = bpf_htons((urgent & 0xffff) + (urgent >> 16));
	return bpf_skb_store_bytes(skb, tcp + 12, words, sizeof(words), 0);
}

/*
 * With ECN and timestamps: NOP NOP TIMESTAMP becomes TIMESTAMP NOP NOP, which leaves the checksum right, too. Header
 * prediction expects the first; a segment that has something else misses it by itself.
 */
static __always_inline long mark_timestamp(struct __sk_buff *skb, u32 tcp)
{
	u16 from[6], to[6];

	if (bpf_skb_load_bytes(skb, tcp + 20, from, sizeof(from)))
		return -1;
	if (from[0] != bpf_htons(0x0101) || from[1] != bpf_htons(0x080a))
		return 0;
	to[0] = from[1];
	to[1] = from[2];
	to[2] = from[3];
	to[3] = from[4];
	to[4] = from[5];
	to[5] = from[0];
	return bpf_skb_store_bytes(skb, tcp + 20, to, sizeof(to), 0);
}

static __always_inline long mark(struct __sk_buff *skb, struct segment *segment, struct flow *flow)
{
	count(MARKS, 1);
	if (segment->flags & TCP_SLOW)
		return 0;
	return flow->ecn ? mark_timestamp(skb, segment->tcp) : mark_ece(skb, segment->tcp);
}
