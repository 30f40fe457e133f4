/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the programs that see listeners come tell of it: an event in a ring buffer, which wakes its reader.
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#pragma once

#include "sockets/iterator.h"

/* Whether somebody waits for listeners on this port of this network namespace, or on all of its ports. */
static __always_inline bool is_wanted(u64 namespace, u16 port)
{
	u64 all = namespace << 16, one = all | port;

	return bpf_map_lookup_elem(MAP(WANTED_FD), &one) || bpf_map_lookup_elem(MAP(WANTED_FD), &all);
}

static __always_inline void tell(u32 pid, u16 port)
{
	struct listen_event event = {.time_ns = bpf_ktime_get_ns(), .pid = pid, .port = port};
	u32 zero = 0;
	u64 *told;

	/* Counted first: a reader that has fewer events than this knows that some found the ring full. */
	told = bpf_map_lookup_elem(MAP(TOLD_FD), &zero);
	if (told)
		__sync_fetch_and_add(told, 1);
	bpf_ringbuf_output(MAP(RING_FD), &event, sizeof(event), 0);
}
