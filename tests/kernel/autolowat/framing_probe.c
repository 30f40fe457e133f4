// SPDX-License-Identifier: GPL-2.0
/* Runs the parser of bpf/autolowat/framing.h on one packet whose first four bytes are its sequence number, without a network. */
#define FRAMES_MAX 40
#include "autolowat/framing.h"

struct result {
	struct stream stream;
	u32 doubt;
};

int framing_probe(struct __sk_buff *skb)
{
	u32 key = 0, seq = 0;
	struct result *result = bpf_map_lookup_elem((void *)bpf_pseudo_fd(1, RESULT_FD), &key);
	struct stream stream;

	if (!result || bpf_skb_load_bytes(skb, 0, &seq, sizeof(seq)))
		return 0;
	stream = result->stream;
	result->doubt = follow(skb, &stream, seq, sizeof(seq), skb->len - sizeof(seq));
	result->stream = stream;
	return 1;
}
