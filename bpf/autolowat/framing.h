/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Follows a stream of frames by sequence number, which both engines of AutoLOWAT share. The framing is compiled
 * in (reuseport_tool/autolowat/framing.py): FRAMING_KIND, and of the number in a frame's header FRAMING_OFFSET,
 * FRAMING_WIDTH, FRAMING_BIG (network order) and FRAMING_ADD (what to add to get the frame's whole length). A frame
 * is at least FRAMING_HEADER bytes, and one of more than FRAMING_MAX bytes is garbage. FRAMES_MAX frames may end
 * in one segment. Sequence numbers wrap; two that are compared are less than 2^31 apart.
 */
#pragma once

enum { KIND_LENGTH, KIND_RPC, KIND_POSTGRES, KIND_HTTP2 };

/* Why following ended; the names are in reuseport_tool/models/autolowat.py, FailOpens. */
enum doubt {
	NO_DOUBT,
	DOUBT_LENGTH,	   /* a length that cannot be, or that is too large */
	DOUBT_TOO_MANY,	   /* too many frames in one segment */
	DOUBT_LOAD,	   /* bytes of the segment could not be read */
	DOUBT_ORDER,	   /* a header passed by out of order */
	DOUBT_URGENT,	   /* urgent data */
	DOUBT_UNSEEN,	   /* data came that the program did not see */
	DOUBT_RACE,	   /* two processors worked on one connection */
	DOUBT_APPLICATION, /* the application set SO_RCVLOWAT or TCP_ULP itself */
	DOUBT_REFUSED,	   /* the kernel did not take a value or a mark */
	DOUBTS,
};

/* Where the current frame is. Everything before `next` has been looked at. */
struct stream {
	u32 start; /* of the current frame */
	u32 end;   /* of the current frame, if `known` */
	u32 next;
	u32 furthest; /* after `next`: bytes passed by out of order, and may hold headers */
	u32 known;    /* the header is complete */
	/* Payload of one frame, of which a segment that comes late or again can change nothing. */
	u32 payload;
	u32 payload_end;
	u32 jumped; /* it may still miss bytes: `next` jumped over them */
	u32 frames; /* that have ended; kept here, so that the verifier does not count with it */
	u8 header[16];
};

static __always_inline bool after(u32 left, u32 right)
{
	return (s32)(left - right) > 0;
}

static __always_inline void begin(struct stream *stream, u32 seq)
{
	stream->start = stream->end = stream->next = stream->furthest = seq;
	stream->payload = stream->payload_end = seq;
	stream->known = stream->jumped = stream->frames = 0;
}

static __always_inline void keep_payload(struct stream *stream, u32 jumped)
{
	stream->payload = stream->start + FRAMING_HEADER;
	stream->payload_end = stream->end;
	stream->jumped = jumped;
}

static __always_inline void end_frame(struct stream *stream)
{
	/* What was jumped over is remembered, until it is out of the reach of a comparison. */
	if (!stream->jumped || stream->end - stream->payload_end > 1 << 30)
		keep_payload(stream, 0);
	stream->start = stream->end;
	stream->known = 0;
	stream->frames++;
}

static __always_inline u64 number(const u8 *at, u32 width)
{
	u64 value = 0;
	u32 i;

#pragma unroll
	for (i = 0; i < 4; i++)
		if (i < width)
			value |= (u64)at[i] << 8 * (FRAMING_BIG ? width - 1 - i : i);
	return value;
}

/* The length of the frame with this header, or 0 for what cannot be a frame. */
static __always_inline u32 frame_length(const u8 *header)
{
	u64 total = number(header + FRAMING_OFFSET, FRAMING_WIDTH) + FRAMING_ADD;

	if (FRAMING_KIND == KIND_RPC)
		total = number(header, 4) + number(header + 4, 4) + 8;
	if (FRAMING_KIND == KIND_POSTGRES) {
		u8 letter = header[0] | 0x20;

		/* StartupMessage, CancelRequest, SSLRequest: no type, a length that begins with 0 */
		if (header[0] == 0)
			total = number(header, 4);
		else if (letter < 'a' || letter > 'z')
			return 0;
	}
	if (FRAMING_KIND == KIND_HTTP2) {
		/* The client's preface, "PRI * HTTP/2.0" and so on, is 24 bytes. */
		if (header[0] == 'P' && header[1] == 'R' && header[2] == 'I' && header[3] == ' ')
			total = 24;
		else if (header[3] > 0x10 || header[5] & 0x80)
			return 0;
	}
	return total < FRAMING_HEADER || total > FRAMING_MAX ? 0 : total;
}

/* Complete the current frame's header with bytes of the segment from `at` to `stop`. Returns where it came to. */
static __always_inline u32 gather(void *skb, struct stream *stream, u32 offset, u32 at, u32 stop, long *failed)
{
	u32 have = at - stream->start, i;

#pragma unroll
	for (i = 0; i < FRAMING_HEADER; i++) {
		if (i < have || at == stop)
			continue;
		*failed |= bpf_skb_load_bytes(skb, offset + at, &stream->header[i], 1);
		at++;
	}
	return at;
}

static __always_inline bool skip_hole(struct stream *stream, u32 seq, u32 stop)
{
	if (!after(seq, stream->next))
		return true;
	/* What is missing is payload: nothing to be learnt from it. */
	if (stream->known && !after(seq, stream->end)) {
		keep_payload(stream, 1);
		stream->next = seq;
		return true;
	}
	if (after(stop, stream->furthest))
		stream->furthest = stop;
	return false;
}

static __always_inline int settle_header(struct stream *stream)
{
	u32 length = frame_length(stream->header);

	if (!length)
		return DOUBT_LENGTH;
	stream->end = stream->start + length;
	stream->known = 1;
	return NO_DOUBT;
}

/*
 * Follow the `length` bytes of payload that begin at `seq`, and at `payload` in the skb. Bytes that were seen before
 * are skipped, those after a hole as well, unless the hole is inside of a frame. Returns an enum doubt.
 */
static __always_inline int follow(void *skb, struct stream *stream, u32 seq, u32 payload, u32 length)
{
	u32 stop = seq + length, offset = payload - seq, at, i;
	long failed = 0;
	int doubt;

	if (!skip_hole(stream, seq, stop) || !after(stop, stream->next))
		return NO_DOUBT;
	at = stream->next;
	stream->next = stop;
	if (!stream->known && at != stream->start) {
		at = gather(skb, stream, offset, at, stop, &failed);
		if (failed)
			return DOUBT_LOAD;
		if (at - stream->start < FRAMING_HEADER)
			return NO_DOUBT;
		doubt = settle_header(stream);
		if (doubt)
			return doubt;
	}
	for (i = 0; i < FRAMES_MAX; i++) {
		asm volatile("" : "+r"(i));
		if (stream->known) {
			if (after(stream->end, stop))
				goto hole;
			end_frame(stream);
		}
		if (stop - stream->start < FRAMING_HEADER)
			goto tail;
		if (bpf_skb_load_bytes(skb, offset + stream->start, stream->header, FRAMING_HEADER))
			return DOUBT_LOAD;
		doubt = settle_header(stream);
		if (doubt)
			return doubt;
	}
	return DOUBT_TOO_MANY;
tail:
	gather(skb, stream, offset, stream->start, stop, &failed);
	if (failed)
		return DOUBT_LOAD;
hole:
	if (stream->known && after(stream->furthest, stop) && !after(stream->furthest, stream->end)) {
		keep_payload(stream, 1);
		stream->next = stream->furthest;
		if (stream->next == stream->end) {
			end_frame(stream);
		}
	}
	if (!after(stream->furthest, stop))
		stream->furthest = stop;
	return NO_DOUBT;
}

/*
 * Before follow(), for a segment that begins before `next`. TCP has the bytes before `received`. If it lacks others that
 * were followed, it threw their segment away (a wrong checksum, an old timestamp, no memory), and the one that comes now may
 * hold other bytes: a header among them is read again. Returns an enum doubt.
 */
static __always_inline int rewind(struct stream *stream, u32 seq, u32 stop, u32 received)
{
	u32 from = after(received, seq) ? received : seq;

	if (stream->jumped && !after(stream->payload_end, received))
		stream->jumped = 0;
	if (from - stream->payload < stream->payload_end - stream->payload)
		from = stream->payload_end;
	if (!after(stop, from) || !after(stream->next, from))
		return NO_DOUBT;
	if (after(stream->start, from))
		return DOUBT_ORDER;
	if (stream->known && from - stream->start >= FRAMING_HEADER)
		return NO_DOUBT;
	if (after(stream->next, stream->furthest))
		stream->furthest = stream->next;
	stream->next = from;
	stream->known = 0;
	return NO_DOUBT;
}

/* The sequence number up to which the current frame must be there before more is known. */
static __always_inline u32 goal(struct stream *stream)
{
	return stream->known ? stream->end : stream->start + FRAMING_HEADER;
}

/* Whether bytes passed by out of order that are not understood yet. */
static __always_inline bool is_blind(struct stream *stream)
{
	return after(stream->furthest, stream->next);
}
