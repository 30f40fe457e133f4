/* SPDX-License-Identifier: GPL-2.0 */
/* What every iterator gets (include/linux/bpf.h, net/ipv4/{tcp_ipv4,udp}.c). */
#pragma once

#include "abi.h"
#include "fields.h"

struct bpf_iter_meta {
	void *seq;
	u64 session_id;
	u64 seq_num;
};

struct bpf_iter_tcp_context {
	struct bpf_iter_meta *meta;
	void *sk_common;
	u32 uid;
};

struct bpf_iter_udp_context {
	struct bpf_iter_meta *meta;
	void *udp_sk;
	u32 uid;
};
