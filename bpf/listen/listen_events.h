/* SPDX-License-Identifier: GPL-2.0 */
/*
 * How the programs that see listeners come tell of it: an event in a ring buffer, which wakes its reader.
 * The offsets (OFF_…) come from the running kernel's BTF, because BCC does not relocate.
 */
#pragma once

#include "sockets/iterator.h"

#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))

/* Read by reuseport_tool/kernel/listen_events.py. */
struct event {
	u64 time_ns;	/* CLOCK_MONOTONIC */
	u64 pid;	/* of the process in the first PID namespace, or 0 */
};

static __always_inline void tell(u64 pid)
{
	struct event event = {.time_ns = bpf_ktime_get_ns(), .pid = pid};
	u32 zero = 0;
	u64 *told;

	/* Counted first: a reader that has fewer events than this knows that some found the ring full. */
	told = bpf_map_lookup_elem(MAP(TOLD_FD), &zero);
	if (told)
		__sync_fetch_and_add(told, 1);
	bpf_ringbuf_output(MAP(RING_FD), &event, sizeof(event), 0);
}
