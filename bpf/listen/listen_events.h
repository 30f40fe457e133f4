/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the programs that see listeners come tell of it: an event in a ring buffer, which wakes its reader.
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#pragma once

#include "abi.h"
#include "fields.h"

/*
 * The PID namespace of who waits for listeners on this port of this network namespace, or on all of its ports. NULL
 * when nobody does.
 */
static __always_inline u32 *is_wanted(u64 namespace, u16 port)
{
	u64 all = namespace << 16, one = all | port;
	u32 *wanted = bpf_map_lookup_elem(MAP(WANTED_FD), &one);

	return wanted ? wanted : bpf_map_lookup_elem(MAP(WANTED_FD), &all);
}

static __always_inline void tell(struct listen_event *event)
{
	u32 zero = 0;
	u64 *told;

	event->time_ns = bpf_ktime_get_ns();
	/* Counted first: a reader that has fewer events than this knows that some found the ring full. */
	told = bpf_map_lookup_elem(MAP(TOLD_FD), &zero);
	if (told)
		__sync_fetch_and_add(told, 1);
	bpf_ringbuf_output(MAP(RING_FD), event, sizeof(*event), 0);
}
