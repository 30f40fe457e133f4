/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What both engines of AutoLOWAT share: the state of a socket, counters, and the application's opt-in.
 * docs/autolowat.md has the argument why no reader stalls. The offsets (OFF_…) come from the running kernel's BTF.
 */
#pragma once
#include "fields.h"
#include "autolowat/framing.h"

#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))
#define sockets_map MAP(SOCKETS_FD)	/* of each socket: struct state */
#define settings_map MAP(SETTINGS_FD)	/* by enum setting */
#define counters_map MAP(COUNTERS_FD)	/* by enum counter */
#define ports_map MAP(PORTS_FD)		/* by port: 1 */

enum setting { WORKING, ANY_PORT };
enum counter { AGREED, OPTED_IN, FRAMES, SAVED, FAIL_OPENS };

#define SOL_SOCKET 1
#define SO_RCVLOWAT 18
#define SOL_TCP 6
#define TCP_ULP 31
#define OPT_LEVEL ((int)0xdeadbeef)
#define OPT_NAME ((int)0x8badf00d)
#define EUCLEAN 117

/* In reuseport_tool/kernel/autolowat.py: the first word is the lock, which keeps `stream` and `turn`. */
struct state {
	struct bpf_spin_lock lock;
	u32 turn;		/* counts the changes of `stream` */
	struct stream stream;
	u32 doubt;		/* enum doubt, set where the socket is not locked */
	u32 finished;		/* a FIN has come */
	/* From here on only changed with the socket locked. */
	u32 armed;
	u32 lowat;		/* what we set last */
	u32 peer;		/* enum role of the other end */
	u32 announce;		/* mark segments without data, too */
	u32 flags;		/* callbacks that we switched on */
	u32 settled;		/* rcv_nxt when the mark was last computed on sending */
	/* Of a sender, which knows where its own frames end. */
	struct stream out;
	u32 out_known;		/* `out` is right */
	u32 out_single;		/* the last frame that began a segment ended with it */
	u32 out_told;		/* the receiver knows that a frame has begun */
};

static __always_inline void count(u32 counter, u64 amount)
{
	u64 *value = bpf_map_lookup_elem(counters_map, &counter);

	if (value)
		*value += amount;
}

static __always_inline u32 setting(u32 key)
{
	u32 *value = bpf_map_lookup_elem(settings_map, &key);

	return value ? *value : 0;
}

static __always_inline bool is_our_port(u32 port)
{
	return setting(ANY_PORT) || bpf_map_lookup_elem(ports_map, &port);
}

/*
 * The kernel's struct sock of a context, at the offset that the context has it. The pointer in the context as programs
 * see it gives no access to the struct's other fields.
 */
static __always_inline void *raw_sock(void *context, u32 offset)
{
	void *sk = NULL;

	READ(sk, context, offset);
	return sk;
}

/* Where the socket's reader is; the socket must be locked. */
static __always_inline u32 copied_seq(void *sk)
{
	u32 copied = 0;

	READ(copied, sk, OFF_COPIED_SEQ);
	return copied;
}

/* Whether everything that has come has been read: the quiet point at which a program may begin to follow. */
static __always_inline bool is_drained(void *sk)
{
	void *backlog = NULL;
	u32 received = 0;

	READ(received, sk, OFF_RCV_NXT);
	READ(backlog, sk, OFF_BACKLOG_TAIL);
	return received == copied_seq(sk) && !backlog;
}

/* Somebody else has plans with the receive queue: kTLS, an MPTCP subflow, the application's own low-water mark. */
static __always_inline bool is_taken(void *sk)
{
	void *ulp = NULL;
	u32 lowat = 0;

	READ(ulp, sk, OFF_ULP);
	READ(lowat, sk, OFF_RCVLOWAT);
	return ulp || lowat > 1;
}
