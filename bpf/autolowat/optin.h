/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The application's side: setsockopt(fd, 0xdeadbeef, 0x8badf00d, &(int){1}, 4) opts a socket in, 0 opts it out. The
 * engine has defined
 * (BCC loads only functions of the main file, so that it also has the program itself, which calls sockopt()):
 *
 *   int start(ctx, sk, raw)		follow this socket; 0, or a negative errno for the application
 *   void stop(ctx, sk, raw, doubt)	leave it alone, if it is followed; `doubt` is counted unless it is NO_DOUBT
 */
#pragma once

/* Returning 0 refuses with EPERM, or with what bpf_set_retval() said (Linux 5.18). */
static __always_inline int refuse(int error)
{
#if CAN_SET_RETVAL
	bpf_set_retval(error);
#endif
	return 0;
}

static __always_inline int opt_in(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw)
{
	u32 *value = ctx->optval, *end = ctx->optval_end;
	int error;

	/* The kernel's buffer is larger than a short value. */
	if (ctx->optlen < (int)sizeof(*value) || value + 1 > end)
		return 0;
	if (*value) {
		/* Ours: it does not go on to the kernel. */
		ctx->optlen = -1;
		error = start(ctx, sk, raw);
		return error ? refuse(error) : 1;
	}
	stop(ctx, sk, raw, NO_DOUBT);
	/* What goes on to the kernel is the low-water mark of a plain socket, which wakes a reader. */
	*value = 1;
	/* Volatile, or the compiler makes one store of the two. */
	*(volatile int *)&ctx->level = SOL_SOCKET;
	*(volatile int *)&ctx->optname = SO_RCVLOWAT;
	ctx->optlen = sizeof(*value);
	return 1;
}

static __always_inline int sockopt(struct bpf_sockopt *ctx)
{
	void *raw = raw_sock(ctx, OFF_SOCKOPT_SK);
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return 1;
	if (ctx->level == OPT_LEVEL && ctx->optname == OPT_NAME)
		return opt_in(ctx, sk, raw);
	if ((ctx->level == SOL_SOCKET && ctx->optname == SO_RCVLOWAT) ||
	    (ctx->level == SOL_TCP && ctx->optname == TCP_ULP))
		stop(ctx, sk, raw, DOUBT_APPLICATION);
	return 1;
}
