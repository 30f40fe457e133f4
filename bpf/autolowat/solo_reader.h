/* SPDX-License-Identifier: GPL-2.0 */
/* The reader of a socket that is locked: where it is, how it waits, and the SO_RCVLOWAT that it should have. */
#pragma once
#include "autolowat/solo.h"

#define SKIP_MAX 63

/*
 * Less than what the window still takes: a sender waits until a segment fits, which is the smaller of the MSS that we
 * announced and half of the window.
 */
static __always_inline u32 reachable(void *sk, u32 copied)
{
	u32 wup = 0, window = 0, room, reserve;
	u16 advmss = 0;

	READ(wup, sk, OFF_RCV_WUP);
	READ(window, sk, OFF_RCV_WND);
	READ(advmss, sk, OFF_ADVMSS);
	room = wup + window - copied;
	reserve = advmss < room / 2 ? advmss : room / 2;
	return room > reserve ? room - reserve : 1;
}

/*
 * recv() on a blocking socket looks at the mark once, when it is called, and sleeps until so much has come, whatever the
 * mark is by then. After a reader took part of a frame the mark is too high until the next segment, and there is no
 * callback for that: such a recv() could sleep for good. So the file must be non-blocking, and somebody must wait for the
 * socket by epoll, poll or select just now; one that is not accepted yet, or that is being handed over, is left alone.
 */
static __always_inline bool may_sleep_in_recv(void *sk)
{
	void *user = NULL, *socket = NULL, *file = NULL, *queue = NULL, *waiter = NULL;
	u32 flags = 0;

	/* A sockmap, or a part of the kernel that reads the socket. */
	READ(user, sk, OFF_USER_DATA);
	if (user)
		return true;
	READ(socket, sk, OFF_SOCKET);
	if (!socket)
		return true;
	READ(file, socket, OFF_FILE);
	if (!file)
		return true;
	READ(flags, file, OFF_FILE_FLAGS);
	if (!(flags & NONBLOCK))
		return true;
	READ(queue, sk, OFF_WAIT_QUEUE);
	READ(waiter, queue, OFF_WAIT_HEAD);
	return waiter == queue + OFF_WAIT_HEAD;
}

/* What is read of the socket before the lock is taken, under which no helper may be called. */
struct reader {
	u32 copied, most;
	bool sleeps;
	bool asked; /* a frame may be open that the reader has come to */
};

static __always_inline void read_reader(void *sk, struct flow *flow, struct reader *reader)
{
	reader->copied = copied_seq(sk);
	reader->asked = is_open(&flow->stream) && !after(flow->stream.start, reader->copied);
	if (!reader->asked)
		return;
	reader->sleeps = may_sleep_in_recv(sk);
	reader->most = reachable(sk, reader->copied);
}

/* The mark for what has come so far. */
static __always_inline u32 wanted(struct flow *flow, struct reader *reader)
{
	struct stream *stream = &flow->stream;
	u32 missing;

	/* A whole frame waits, of which the reader may take a part and come back; or what comes next is not known. */
	if (!reader->asked || reader->sleeps || !is_open(stream) || after(stream->start, reader->copied) ||
	    is_blind(stream) || !after(goal(stream), reader->copied))
		return 1;
	missing = goal(stream) - reader->copied;
	if (missing <= reader->most)
		return missing;
	/* The window moves with each segment, but the mark need not. */
	return flow->lowat > reader->most / 2 && flow->lowat <= reader->most ? flow->lowat : reader->most;
}

/* A reader that sleeps in recv() is asked for more and more seldom. */
static __always_inline void answer(struct flow *flow, struct reader *reader, u32 lowat)
{
	flow->copied = reader->copied;
	if (!reader->asked)
		return;
	flow->answered = goal(&flow->stream);
	flow->refused = !reader->sleeps ? 0 : flow->refused < SKIP_MAX ? flow->refused * 2 + 1 : SKIP_MAX;
	flow->skip = flow->refused;
}
