/* SPDX-License-Identifier: GPL-2.0 */
/* The tc program follows the frames of a flow from segment to segment, without the socket's lock, and says which to mark. */
#pragma once
#include "autolowat/solo_segment.h"

/* Follow a segment that is not the next one. `skip`: TCP will not take it, or has all of it. */
static __always_inline u32 step_aside(void *sk, struct stream *stream, struct segment *segment, bool *skip)
{
	u32 received = 0, wup = 0, window = 0;

	READ(received, sk, OFF_RCV_NXT);
	READ(wup, sk, OFF_RCV_WUP);
	READ(window, sk, OFF_RCV_WND);
	*skip = !after(segment->stop, received) || after(segment->seq, wup + window);
	if (*skip || after(segment->seq, stream->next))
		return NO_DOUBT;
	return rewind(stream, segment->seq, segment->stop, received);
}

/* Everything of this segment that the lock does not need to keep. */
struct finding {
	u32 doubt, frames;
	bool odd; /* TCP's own order is not ours: have the mark looked at again */
	bool skip;
	bool fresh;   /* something of it was not followed before, at this device or at the one below */
	bool reached; /* the reader has come to the open frame, and nobody was asked about its goal */
};

static __always_inline void look(struct __sk_buff *skb, struct flow *flow, struct stream *stream,
				 struct segment *segment, struct finding *found)
{
	void *sk = (void *)(long)flow->sk;
	u32 frames = stream->frames, next = stream->next, furthest = stream->furthest;

	found->odd = segment->seq != stream->next || is_blind(stream);
	if (segment->seq != stream->next)
		found->doubt = step_aside(sk, stream, segment, &found->skip);
	if (found->doubt || found->skip)
		return;
	found->doubt = follow(skb, stream, segment->seq, segment->payload, segment->stop - segment->seq);
	found->frames = stream->frames - frames;
	found->fresh = after(stream->next, next) || after(stream->furthest, furthest);
	found->odd |= is_blind(stream);
	if (is_open(stream) && goal(stream) != flow->answered)
		found->reached = !after(stream->start, copied_seq(sk));
}

/* Under the lock: whether TCP must call us for this segment. */
static __always_inline bool wants_mark(struct flow *flow, struct finding *found)
{
	if (flow->doubt || found->odd || (flow->lowat > 1 && found->frames))
		return true;
	if (!found->reached || goal(&flow->stream) == flow->answered)
		return false;
	if (flow->lowat == 1 && flow->skip) {
		flow->skip--;
		flow->answered = goal(&flow->stream);
		return false;
	}
	return true;
}

/* One try: another processor may have followed another segment meanwhile. Whether it is done. */
static __always_inline bool advance(struct __sk_buff *skb, struct flow *flow, struct segment *segment, bool last,
				    bool *wanted)
{
	struct finding found = {};
	struct stream stream;
	u32 turn, doubt;
	bool done;

	bpf_spin_lock(&flow->lock);
	stream = flow->stream;
	turn = flow->turn;
	doubt = flow->doubt;
	bpf_spin_unlock(&flow->lock);
	found.doubt = doubt;
	if (!doubt)
		look(skb, flow, &stream, segment, &found);
	if (found.skip)
		return true;
	bpf_spin_lock(&flow->lock);
	done = flow->turn == turn;
	if (done) {
		flow->stream = stream;
		flow->turn++;
		flow->doubt = flow->doubt ?: found.doubt;
		*wanted = wants_mark(flow, &found);
	} else if (last) {
		flow->doubt = DOUBT_RACE;
		*wanted = true;
	}
	bpf_spin_unlock(&flow->lock);
	if (done && found.frames)
		count(FRAMES, found.frames);
	else if (done && found.fresh && !found.doubt)
		count(SAVED, 1);
	return done;
}

/*
 * The common cases by one lock and no copy: in sequence, more of a frame whose end is known or the first of a new one, and
 * not beyond its end. Whether it is done. What is read before the lock is looked at again.
 */
static __always_inline bool advance_simply(struct __sk_buff *skb, struct flow *flow, struct segment *segment,
					   bool *wanted)
{
	u32 known = flow->stream.known, end = flow->stream.end, size = segment->stop - segment->seq, length;
	struct stream *stream = &flow->stream;
	struct finding found = {};
	u8 header[16];
	bool simple;

	if (!known) {
		if (stream->start != segment->seq || size < FRAMING_HEADER ||
		    bpf_skb_load_bytes(skb, segment->payload, header, FRAMING_HEADER))
			return false;
		length = frame_length(header);
		if (!length)
			return false;
		end = segment->seq + length;
	}
	if (end != segment->stop && end != flow->answered)
		found.reached = !after(stream->start, copied_seq((void *)(long)flow->sk));
	bpf_spin_lock(&flow->lock);
	simple = stream->next == segment->seq && stream->known == known && !after(segment->stop, end) && !flow->doubt &&
		 !is_blind(stream) && (known ? stream->end == end : stream->start == segment->seq);
	if (simple) {
		stream->end = end;
		stream->known = 1;
		stream->next = segment->stop;
		stream->furthest = segment->stop;
		if (end == segment->stop) {
			end_frame(stream);
			found.frames = 1;
		}
		flow->turn++;
		*wanted = wants_mark(flow, &found);
	}
	bpf_spin_unlock(&flow->lock);
	if (simple)
		count(end == segment->stop ? FRAMES : SAVED, 1);
	return simple;
}
