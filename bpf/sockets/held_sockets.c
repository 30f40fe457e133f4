// SPDX-License-Identifier: GPL-2.0
/*
 * An iterator over the descriptors of all processes that writes a record for each socket of a process: for one of its
 * descriptors, however many it has of this socket. Anybody may have millions of a single one. The kernel visits every
 * table of descriptors once, by a thread that has it (kernel/bpf/task_iter.c).
 */
#include "sockets/iterator.h"

#define S_IFMT 0170000
#define S_IFSOCK 0140000

struct bpf_iter_task_file_context {
	struct bpf_iter_meta *meta;
	void *task;
	u64 fd; /* a u32, aligned to 8 bytes */
	void *file;
};

#define seen_map ((void *)bpf_pseudo_fd(1, SEEN_FD))

/* By inode: in which walk a record was written last, and for which process. */
struct seen {
	u64 session;
	u64 pid;
};

static __always_inline void *pid_of(void *task)
{
	void *leader = NULL, *pid = NULL;

	READ(leader, task, OFF_GROUP_LEADER);
	READ(pid, leader, OFF_THREAD_PID);
	return pid;
}

/* The process's number in the PID namespace of who reads, whose processes alone are visited. */
static __always_inline u32 number_of(void *task)
{
	u32 level = 0, number = 0;

	READ(level, pid_of((void *)bpf_get_current_task()), OFF_PID_LEVEL);
	READ(number, pid_of(task), OFF_PID_NUMBERS + level * SIZE_UPID + OFF_UPID_NR);
	return number;
}

int bpf_iter__task_file(struct bpf_iter_task_file_context *ctx)
{
	struct bpf_iter_meta *meta = ctx->meta;
	void *task = ctx->task, *file = ctx->file, *inode = NULL;
	struct held_socket held = {};
	struct seen now, *before;
	u16 mode = 0;

	if (!task || !file)
		return 0;
	READ(inode, file, OFF_FILE_INODE);
	READ(mode, inode, OFF_MODE);
	if ((mode & S_IFMT) != S_IFSOCK)
		return 0;
	READ(held.inode, inode, OFF_NUMBER);
	held.pid = number_of(task);
	held.fd = ctx->fd;
	now.session = meta->session_id;
	now.pid = held.pid;
	before = bpf_map_lookup_elem(seen_map, &held.inode);
	if (before && before->session == now.session && before->pid == now.pid)
		return 0;
	/* Where the buffer is full, the kernel asks again for this descriptor. */
	if (!bpf_seq_write(meta->seq, &held, sizeof(held)))
		bpf_map_update_elem(seen_map, &held.inode, &now, BPF_ANY);
	return 0;
}
