/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Two programs that show what BPF_SOCK_OPS_RCVQ_CB does: `rcvq` (SOCK_OPS) counts and sets what
 * `settings` says, `opt_in` (cgroup/setsockopt) enables the callback with the flags that user space
 * gives. rcvq.py tells the story.
 */
#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))
#define settings_map MAP(SETTINGS_FD) /* by enum setting */
#define seen_map MAP(SEEN_FD)	      /* by enum seen */

enum setting { ARM_ON_ESTABLISHED, LOWAT_QUEUED, LOWAT_RECEIVED, DISARM };
enum seen { QUEUED, RECEIVED, BYTES, LAST_WORD, KFUNC, SETSOCKOPT, ARM, OPT_IN, LOAD_WITHOUT_SKB };

#define OPT_LEVEL 0xdeadbeef
#define OPT_NAME 0x8badf00d
#define SOL_TCP 6
#define SOL_SOCKET 1
#define SO_RCVLOWAT 18
#define TCP_BPF_SOCK_OPS_CB_FLAGS 1008

static void *(*to_kern_ctx)(void *) = (void *)CAST_ID;
static int (*set_rcvlowat)(void *, int) = (void *)RCVLOWAT_ID;

static __always_inline u32 setting(u32 key)
{
	u32 *value = bpf_map_lookup_elem(settings_map, &key);

	return value ? *value : 0;
}

static __always_inline void see(u32 key, u32 value)
{
	bpf_map_update_elem(seen_map, &key, &value, BPF_ANY);
}

static __always_inline void add(u32 key, u32 amount)
{
	u32 *value = bpf_map_lookup_elem(seen_map, &key);

	if (value)
		__sync_fetch_and_add(value, amount);
}

/*
 * How many bytes of the segment were queued before: a retransmitted one may begin in what is there already,
 * and rcv_nxt has not moved yet.
 */
static __always_inline u32 known(struct bpf_sock_ops *skops)
{
	void *skb = NULL;
	u32 seq = 0;

	bpf_probe_read_kernel(&skb, sizeof(skb), to_kern_ctx(skops) + SKB_OFFSET);
	bpf_probe_read_kernel(&seq, sizeof(seq), skb + SEQ_OFFSET);
	return skops->rcv_nxt - seq;
}

static __always_inline void queued(struct bpf_sock_ops *skops)
{
	u32 length = skops->skb_len, word = 0;

	add(QUEUED, 1);
	add(BYTES, length - known(skops));
	if (length >= 4 && length < 0x10000 && !bpf_skb_load_bytes(skops, length - 4, &word, 4))
		see(LAST_WORD, word);
}

static __always_inline void received(struct bpf_sock_ops *skops)
{
	u32 word;

	add(RECEIVED, 1);
	see(LOAD_WITHOUT_SKB, bpf_skb_load_bytes(skops, 0, &word, 4));
}

int rcvq(struct bpf_sock_ops *skops)
{
	bool has_skb;
	u32 lowat, one = 1;

	if (skops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB || skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB) {
		if (setting(ARM_ON_ESTABLISHED))
			see(ARM, bpf_sock_ops_cb_flags_set(skops, RCVQ_FLAG));
		return 1;
	}
	if (skops->op != RCVQ_OP)
		return 1;

	/* Direct access is off: skb_data equals skb_data_end, and both are 0 where there is no skb. */
	has_skb = skops->skb_data != NULL;
	if (has_skb)
		queued(skops);
	else
		received(skops);

	see(SETSOCKOPT, bpf_setsockopt(skops, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one)));
	lowat = setting(has_skb ? LOWAT_QUEUED : LOWAT_RECEIVED);
	if (lowat)
		see(KFUNC, set_rcvlowat(to_kern_ctx(skops), lowat));
	if (setting(DISARM))
		bpf_sock_ops_cb_flags_set(skops, 0);
	return 1;
}

int opt_in(struct bpf_sockopt *ctx)
{
	u32 *value = ctx->optval, *end = ctx->optval_end, flags;

	if (ctx->level != (int)OPT_LEVEL || ctx->optname != (int)OPT_NAME)
		return 1;
	if (value + 1 > end)
		return 0;
	flags = *value ? RCVQ_FLAG : 0;
	see(OPT_IN, bpf_setsockopt(ctx->sk, SOL_TCP, TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)));
	/* Ours: do not pass it on to the kernel. */
	ctx->optlen = -1;
	return 1;
}
