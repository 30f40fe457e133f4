/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What QUIC shows in clear: the header of the first packet of a datagram (RFC 8999, RFC 9000 section 17, RFC 9369).
 * All packets of a datagram have the same connection ID (RFC 9000, section 12.2), so the first one tells.
 */
#pragma once

#include "abi.h"

enum {
	LONG_HEADER = 0x80,
	FIXED_BIT = 0x40,
	TYPE_SHIFT = 4,
	TYPE_MASK = 3,
	AFTER_FIRST_BYTE = 1,	/* offset of the version, or of the ID of a short header */
	DESTINATION_LENGTH = 5, /* offset in a long header */
	DESTINATION_ID = 6,
	LONG_HEAD = 6, /* bytes of a long header up to there */
};

#define VERSION_1 0x00000001U
#define VERSION_2 0x6b3343cfU

/* As version 1 numbers them. */
enum packet_type {
	TYPE_INITIAL,
	TYPE_0RTT,
	TYPE_HANDSHAKE,
	TYPE_RETRY,
	TYPE_UNKNOWN,	  /* of another version */
	TYPE_NEGOTIATION, /* Version Negotiation: the version is 0 */
};

/* The type of a packet with a long header that begins with these bytes. */
static __always_inline u32 packet_type(const u8 head[LONG_HEAD])
{
	u32 version = (u32)head[1] << 24 | (u32)head[2] << 16 | (u32)head[3] << 8 | head[4];
	u32 type = head[0] >> TYPE_SHIFT & TYPE_MASK;

	if (version == VERSION_1)
		return type;
	if (version == VERSION_2)
		return (type + 3) & TYPE_MASK; /* Retry, Initial, 0-RTT, Handshake */
	return version ? TYPE_UNKNOWN : TYPE_NEGOTIATION;
}

/* The first bytes of a word as it is in memory; zeros in the place of the others. */
static __always_inline u64 first_bytes(u64 word, s32 count)
{
	if (count >= 8)
		return word;
	if (count <= 0)
		return 0;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return word & ((1ULL << 8 * count) - 1);
#else
	return word & ~(~0ULL >> 8 * count);
#endif
}

/* Bytes from which an ID is cut: as many as one can have, and zeros up to a whole word. */
struct id_bytes {
	u64 words[3];
};

/* The ID of this length, at most CONNECTION_ID_MAX, with which these bytes begin. */
static __always_inline void cut_id(struct connection_id *id, const struct id_bytes *bytes, u32 length)
{
	u64 *words = (u64 *)id->id;

	words[0] = first_bytes(bytes->words[0], length);
	words[1] = first_bytes(bytes->words[1], (s32)length - 8);
	words[2] = first_bytes(bytes->words[2], (s32)length - 16);
	id->length = length;
}

/* What a datagram of neither a known connection nor a known flow may be. */
enum datagram_kind {
	DATAGRAM_OTHER, /* of no connection: nothing is recorded */
	DATAGRAM_NEW,	/* begins a connection */
	DATAGRAM_LATER, /* of a connection that began before */
};

/* What a datagram shows. */
struct datagram {
	u32 kind;   /* enum datagram_kind */
	u32 length; /* of the ID in a long header; 0 in a short one */
	bool is_short;
	bool has_id;	/* whether `bytes` could be read */
	bool may_teach; /* the client has got its ID from the server */
	struct id_bytes bytes;
};

/* Read the bytes from which an ID at an offset is cut. Returns 0, or a negative error. */
static __always_inline int read_id_bytes(void *skb, u32 offset, struct id_bytes *bytes)
{
	return bpf_skb_load_bytes(skb, offset, bytes->words, CONNECTION_ID_MAX);
}
