/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What every policy program of reuseport-tool shares.
 *
 * A policy is one C file with one expression: which member of the working generation gets a new
 * connection. The file's name is the program's name. This is a whole program:
 *
 *	// lowest_port.c
 *	#include "reuseport.h"
 *	REUSEPORT_POLICY(lowest_port)
 *	{
 *		return ctx->hash;
 *	}
 *
 * In the body:
 *	ctx		struct sk_reuseport_md *: hash, len, eth_protocol, ip_protocol, data … data_end (from
 *			the TCP or UDP header on); the IP header by policy_load_ip(), policy_load_source()
 *	members		u32, the number of slots of the working generation, at least 1
 *	return		any number: the listener in slot (number % members) gets the connection, or the next
 *			one that is still open; or REUSEPORT_DROP to refuse it
 *
 * The body is asked for new connections only. Migrated ones are dealt out in turn over the working
 * generation, because the kernel does not look at the backlog of the listener they go to.
 *
 * During a canary a share of the new connections goes to the canary generation instead, and `members` is
 * then its number of slots. One connection, named by its source, can be steered there at any share.
 *
 * Everything fails open: where no member can be selected the program returns SK_PASS without a
 * selection, and the kernel chooses among all listeners of the group by itself.
 *
 * A connection is selected when its SYN arrives (also a segment that no connection claims is looked
 * up, so `selected` counts runs, not connections) and migrated when the kernel moves it from a listener that
 * closes: migrating_sk is then the child socket, or the request socket for TCP_NEW_SYN_RECV.
 */
#pragma once

#define REUSEPORT_DROP 0xffffffffU

/* Kept in step with reuseport_tool/group/layout.py, which passes them on. */
#ifndef GENERATIONS
#error "GENERATIONS comes from the tool"
#endif

/* The maps come as file descriptors: BCC has no tables of these types. */
#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))
#define choice_map MAP(CHOICE_FD)	    /* by enum choice */
#define members_map MAP(MEMBERS_FD)	    /* [generation % GENERATIONS]: slots in use */
#define generations_map MAP(GENERATIONS_FD) /* [generation % GENERATIONS]: its sockarray */
#define counters_map MAP(COUNTERS_FD)	    /* per CPU, by enum counter */
#define cursors_map MAP(CURSORS_FD)	    /* by enum cursor */

/* Each element is read and written by itself, so that none is ever seen half written. */
enum choice {
	CHOICE_WORKING,		/* number of the working generation, 0 for none */
	CHOICE_CANARY,		/* number of the canary generation, 0 for none */
	CHOICE_SHARE,		/* of new connections that the canary gets, in SHARES */
	CHOICE_STEERED_PORT,	/* source port of the connection to steer to the canary, in network order, or 0 */
	CHOICE_STEERED_ADDRESS, /* its source address: 4 elements in network order, IPv4 in the first */
};

enum counter {
	SELECTED,
	FALLBACK,
	MIGRATED_ESTABLISHED,
	MIGRATED_SYN_RECV,
	MIGRATED_NEW_SYN_RECV,
	DROPPED,
	CANARY,
	STEERED,
};

enum cursor {
	CURSOR_NEW,
	CURSOR_MIGRATED,
	CURSOR_CANARY,
};

enum {
	SHARES = 10000,
	SHARES_STRIDE = 6181, /* no common divisor with SHARES, and near its golden section */
	GUESSES = 8,
	TRIED_MAX = 512,
	TRIED_OLDER = 16,
	ETH_P_IP = 0x0800,
	IPPROTO_UDP = 17,
	IPV4_SOURCE = 12, /* offset in the IPv4 header */
	IPV6_SOURCE = 8,  /* offset in the IPv6 header */
};

enum {
	STATE_ESTABLISHED = 1,
	STATE_SYN_RECV = 3,
};

static __always_inline void count(u32 counter)
{
	u64 *value = bpf_map_lookup_elem(counters_map, &counter);

	if (value)
		*value += 1;
}

/*
 * The cursor's number, which then moves on. BCC's LLVM target has no atomic fetch-and-add, so two
 * CPUs at the very same moment can get one number; none is lost to the cursor.
 */
static __always_inline u32 next_in_turn(u32 cursor)
{
	u32 *value = bpf_map_lookup_elem(cursors_map, &cursor), number;

	if (!value)
		return 0;
	number = *value;
	__sync_fetch_and_add(value, 1);
	return number;
}

/* Copy `size` bytes at `offset` of the IP header. Returns 0, or a negative error. */
static __always_inline int policy_load_ip(struct sk_reuseport_md *ctx, u32 offset, void *to, u32 size)
{
	return bpf_skb_load_bytes_relative(ctx, offset, to, size, BPF_HDR_START_NET);
}

/* Copy the source address: 4 words in network order, an IPv4 one in the first. Returns 0, or a negative error. */
static __always_inline int policy_load_source(struct sk_reuseport_md *ctx, u32 address[4])
{
	if (ctx->eth_protocol == bpf_htons(ETH_P_IP))
		return policy_load_ip(ctx, IPV4_SOURCE, address, 4);
	return policy_load_ip(ctx, IPV6_SOURCE, address, 16);
}

/*
 * The same number, of which the verifier knows nothing any more. Without it, it walks the search below once for each
 * way that leads there, which takes 50 ms at each load.
 */
static __always_inline u32 forget(u32 number, u32 unknown)
{
	asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(number) : "r"(unknown));
	return number;
}

/* The finalizer of MurmurHash3 (public domain): every bit of the number moves every bit of the result. */
static __always_inline u32 mix(u32 number)
{
	number ^= number >> 16;
	number *= 0x85ebca6b;
	number ^= number >> 13;
	number *= 0xc2b2ae35;
	return number ^ number >> 16;
}

static __always_inline u32 choice(u32 index)
{
	u32 *value = bpf_map_lookup_elem(choice_map, &index);

	return value ? *value : 0;
}

/* Whether this is a connection or a datagram of the tool's own, by which it asks the new server. */
static __always_inline bool is_steered(struct sk_reuseport_md *ctx)
{
	u32 port = choice(CHOICE_STEERED_PORT), source[4] = {};
	u16 *header = ctx->data;

	if (!port || (void *)(header + 1) > ctx->data_end || *header != port)
		return false;
	return !policy_load_source(ctx, source) && source[0] == choice(CHOICE_STEERED_ADDRESS) &&
	       source[1] == choice(CHOICE_STEERED_ADDRESS + 1) && source[2] == choice(CHOICE_STEERED_ADDRESS + 2) &&
	       source[3] == choice(CHOICE_STEERED_ADDRESS + 3);
}

#ifdef FLOWS
#include "udp/flows.h"
#else
/* A group that keeps no flows pays nothing for those that do. */
struct flow {};
#define keep_flow(ctx, flow) ((void)(flow), false)
#define note_slot(ctx, flow, slot) ((void)(flow))
#define record_flow(flow, generation) ((void)(flow))
#define is_later(flow) ((void)(flow), false)
#define count_older()
#endif

/*
 * Whether the listener in a slot got the connection. It does not if it has been closed. A group that keeps flows has the
 * slot in `flow`.
 */
static __always_inline bool select_slot(struct sk_reuseport_md *ctx, void *sockarray, u32 slot, struct flow *flow)
{
	if (bpf_sk_select_reuseport(ctx, sockarray, &slot, 0))
		return false;
	note_slot(ctx, flow, slot);
	return true;
}

/*
 * Select the member `wanted`, or another one that is open. Returns whether one was found.
 *
 * What a closed member would have got is dealt out over all others, the same for the same `wanted`: a few guesses jump,
 * so that no neighbour of a closed member gets its share. Then slots are tried in turn, at most `most` of them. UDP has
 * no guesses: the slot of a connected socket is empty, and the kernel's own choice gives its share to the next one.
 */
static __always_inline bool select_member(struct sk_reuseport_md *ctx, void *sockarray, u32 members, u32 wanted,
					  u32 most, struct flow *flow)
{
	u32 tried, guesses = ctx->ip_protocol == IPPROTO_UDP ? 0 : GUESSES;
	/* A policy that says the slot itself does not say how to deal out what that slot would have got. */
	u32 guess = wanted < members ? ctx->hash : wanted;

	if (select_slot(ctx, sockarray, wanted % members, flow))
		return true;
	/* Hide the counter from LLVM: it would unroll one loop, and of the other test what bounds nothing. */
	for (tried = 0; tried < guesses; tried++) {
		asm volatile("" : "+r"(tried));
		guess = mix(guess + 1);
		if (select_slot(ctx, sockarray, guess % members, flow))
			return true;
	}
	for (tried = 1; tried < most && tried < members; tried++) {
		asm volatile("" : "+r"(tried));
		if (select_slot(ctx, sockarray, (wanted + tried) % members, flow))
			return true;
	}
	return false;
}

static __always_inline void count_migrated(u32 state)
{
	if (state == STATE_ESTABLISHED)
		count(MIGRATED_ESTABLISHED);
	else if (state == STATE_SYN_RECV)
		count(MIGRATED_SYN_RECV);
	else
		count(MIGRATED_NEW_SYN_RECV);
}

#ifdef MIGRATE
#define migrating(ctx) ((ctx)->migrating_sk != NULL)
#define migrating_state(ctx) ((ctx)->migrating_sk ? (ctx)->migrating_sk->state : 0)
#else
#define migrating(ctx) false
#define migrating_state(ctx) 0
#endif

/*
 * Whether the next connection belongs to a share. Over any SHARES connections in a row the numbers
 * n * STRIDE % SHARES are all different, so the share is exact, and the golden section spreads it evenly.
 */
static __always_inline bool in_share(u32 share)
{
	return share && (u64)next_in_turn(CURSOR_CANARY) * SHARES_STRIDE % SHARES < share;
}

/* Where a new connection goes: SELECTED for the working generation, or CANARY or STEERED. */
static __always_inline u32 destination(struct sk_reuseport_md *ctx)
{
	if (!choice(CHOICE_CANARY))
		return SELECTED;
	if (is_steered(ctx))
		return STEERED;
	return in_share(choice(CHOICE_SHARE)) ? CANARY : SELECTED;
}

typedef u32 policy_fn(struct sk_reuseport_md *ctx, u32 members);

/* A verdict of enum sk_action, or: the generation has no open member. */
#define NOBODY (-1)

/* In the place of a counter. */
#define UNCOUNTED 0xffffffffU

/*
 * Let a member of a generation have the connection, which counts as `where`; `most` as for select_member().
 */
static __always_inline int choose_from(struct sk_reuseport_md *ctx, policy_fn *policy, u32 number, u32 where, u32 most,
				       struct flow *flow)
{
	bool is_new = !migrating(ctx);
	u32 wanted, generation = number % GENERATIONS;
	u32 *members = bpf_map_lookup_elem(members_map, &generation);
	void *sockarray = bpf_map_lookup_elem(generations_map, &generation);

	if (!members || !sockarray || !*members)
		return NOBODY;
	wanted = is_new ? policy(ctx, *members) : next_in_turn(CURSOR_MIGRATED);
	if (is_new && wanted == REUSEPORT_DROP) {
		count(DROPPED);
		return SK_DROP;
	}
	is_new = forget(is_new, ctx->hash);
	where = forget(where, ctx->hash);
	if (!select_member(ctx, sockarray, *members, wanted, most, flow))
		return NOBODY;
	if (is_new) {
		count(where);
		record_flow(flow, number);
	}
	return SK_PASS;
}

/* A datagram of an unknown connection that began before: the servers of the generation before may know it, if any run. */
static __always_inline int choose_older(struct sk_reuseport_md *ctx, policy_fn *policy, struct flow *flow)
{
	int verdict = choose_from(ctx, policy, choice(CHOICE_WORKING) - 1, UNCOUNTED, TRIED_OLDER, flow);

	if (verdict != NOBODY)
		count_older();
	return verdict;
}

static __always_inline int run_policy(struct sk_reuseport_md *ctx, policy_fn *policy)
{
	u32 where = SELECTED;
	int verdict = NOBODY;
	struct flow flow = {};

	if (migrating(ctx))
		count_migrated(migrating_state(ctx));
	else if (keep_flow(ctx, &flow))
		return SK_PASS;
	else if (is_later(&flow))
		verdict = choose_older(ctx, policy, &flow);
	else
		where = destination(ctx);
	if (where != SELECTED)
		verdict = choose_from(ctx, policy, choice(CHOICE_CANARY), where, 0, &flow);
	if (verdict == NOBODY)
		verdict = choose_from(ctx, policy, choice(CHOICE_WORKING), SELECTED, TRIED_MAX, &flow);
	if (verdict != NOBODY)
		return verdict;
	count(FALLBACK);
	return SK_PASS;
}

#define REUSEPORT_POLICY(name)                                                              \
	static __always_inline u32 name##_policy(struct sk_reuseport_md *ctx, u32 members); \
	int name(struct sk_reuseport_md *ctx)                                               \
	{                                                                                   \
		return run_policy(ctx, name##_policy);                                      \
	}                                                                                   \
	static __always_inline u32 name##_policy(struct sk_reuseport_md *ctx, u32 members)
