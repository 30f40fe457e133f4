/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The application's side: setsockopt(fd, 0xdeadbeef, 0x8badf00d, &(int){1}, 4) opts a socket in, 0 opts it out. The
 * engine has defined
 * (BCC loads only functions of the main file, so that it also has the program itself, which calls sockopt()):
 *
 *   int start(sk, raw)		follow this socket; 0, or a negative errno for the application
 *   void stop(sk, raw, state)	leave it alone, with a low-water mark of 1
 */
#pragma once

/* Returning 0 refuses with EPERM, or with what bpf_set_retval() said. */
static __always_inline int opt_in(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw)
{
	u32 *value = ctx->optval, *end = ctx->optval_end;
	struct state *state;
	int error;
	u32 wish;

	/* The kernel's buffer is larger than a short value. */
	if (ctx->optlen < (int)sizeof(*value) || value + 1 > end)
		return 0;
	wish = *value;
	/* Ours: it does not go on to the kernel. */
	ctx->optlen = -1;
	if (wish) {
		error = start(sk, raw);
		if (error) {
			bpf_set_retval(error);
			return 0;
		}
		return 1;
	}
	state = bpf_sk_storage_get(sockets_map, sk, 0, 0);
	if (state && state->armed)
		stop(sk, raw, state);
	return 1;
}

static __always_inline int sockopt(struct bpf_sockopt *ctx)
{
	void *raw = raw_sock(ctx, OFF_SOCKOPT_SK);
	struct bpf_sock *sk = ctx->sk;
	struct state *state;

	if (!sk)
		return 1;
	if (ctx->level == OPT_LEVEL && ctx->optname == OPT_NAME)
		return opt_in(ctx, sk, raw);
	if ((ctx->level == SOL_SOCKET && ctx->optname == SO_RCVLOWAT) ||
	    (ctx->level == SOL_TCP && ctx->optname == TCP_ULP)) {
		state = bpf_sk_storage_get(sockets_map, sk, 0, 0);
		if (state && state->armed) {
			stop(sk, raw, state);
			count(FAIL_OPENS + DOUBT_APPLICATION, 1);
		}
	}
	return 1;
}
