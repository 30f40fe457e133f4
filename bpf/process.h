/* SPDX-License-Identifier: GPL-2.0 */
/* Which process runs, by the number that it has in the PID namespace of the tool. */
#pragma once

#include "fields.h"

#define PIDNS_LEVELS 33 /* MAX_PID_NS_LEVEL and the first one */

/* `namespace` is an inode. 0 for a process that it does not see. */
static __always_inline u32 process_id(u32 namespace)
{
	void *leader = NULL, *pid = NULL, *ns;
	u32 deepest = 0, inum, number;

	READ(leader, bpf_get_current_task(), OFF_GROUP_LEADER);
	READ(pid, leader, OFF_THREAD_PID);
	READ(deepest, pid, OFF_PID_LEVEL);
#pragma unroll
	for (u32 level = 0; level < PIDNS_LEVELS; level++) {
		if (level > deepest)
			return 0;
		ns = NULL, inum = number = 0;
		READ(ns, pid, OFF_PID_NUMBERS + level * SIZE_UPID + OFF_UPID_NS);
		READ(inum, ns, OFF_PIDNS_INUM);
		if (inum == namespace) {
			READ(number, pid, OFF_PID_NUMBERS + level * SIZE_UPID + OFF_UPID_NR);
			return number;
		}
	}
	return 0;
}
