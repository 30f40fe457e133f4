/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The records that programs write or read and reuseport_tool/kernel/abi.py reads or writes. That module passes the sizes
 * that it works with (SIZEOF_…), so a difference does not compile. The TCP states are BPF_TCP_… of linux/bpf.h.
 */
#pragma once

/* A map by the constant that stands for it until the tool links the program: BCC has no tables of all types. */
#define MAP(fd) ((void *)bpf_pseudo_fd(1, fd))

#define FAMILY_INET6 10

/* Who a socket is and where it is bound. A socket that is to be ended is compared with it as it stands. */
struct tuple {
	u8 local[16]; /* network order; of an IPv4 address the first four bytes */
	u8 remote[16];
	u16 local_port;	 /* host order */
	u16 remote_port; /* network order */
	u16 family;
	u16 state;
	u32 device; /* index of the device it is bound to, or 0 */
	u32 unused;
};

#define NO_IDLE 0xffffffffU

struct socket_record {
	u64 cookie;
	u64 inode;     /* 0 for a socket without a descriptor */
	u64 synack_us; /* when the first SYN+ACK of a request socket was sent, CLOCK_MONOTONIC; or 0 */
	struct tuple tuple;
	u32 uid;
	u32 idle;	   /* jiffies since data came or went, or NO_IDLE */
	u32 receive_queue; /* bytes; of a listener its accept queue, in connections */
	u32 send_queue;	   /* bytes; of a listener its backlog, in connections */
};

#define NOT_IN_SOCKS 0xffffffffU

/* What the kernel keeps of a socket's reuseport group: struct sock_reuseport of include/net/sock_reuseport.h. */
struct membership {
	u64 group; /* its address, or 0 */
	u32 has_program;
	u32 program_id; /* 0 for classic BPF */
	u32 index;	/* in socks[], by which the kernel's own choice counts; or NOT_IN_SOCKS */
	u32 size;	/* sockets in socks[] that are not closed */
};

struct listener_record {
	u64 cookie; /* of the listener, also in the record of a request socket */
	struct membership membership;
	u32 state;
	u32 accept_queue; /* connections, as all that follow */
	u32 backlog;
	u32 half_open;
};

struct udp_record {
	u64 cookie;
	struct tuple tuple;
	struct membership membership;
	u32 receive_queue; /* bytes */
	u32 send_queue;
	u32 drops; /* datagrams */
	u32 unused;
};

/* Whose datagrams belong together, in network order; of an IPv4 address the first four bytes. */
struct flow_key {
	u8 source[16];
	u8 destination[16];
	u16 port; /* of the source */
	u16 unused;
};

/* Where a flow belongs. Read as one word, so that it is never seen half written. */
struct flow_word {
	u32 seen; /* CLOCK_MONOTONIC in 2^UNIT_SHIFT ns (kernel/flow_map.py) */
	u16 slot;
	u16 generation;
} __attribute__((aligned(8)));

#define CONNECTION_ID_MAX 20 /* of versions 1 and 2, RFC 9000, section 17.2 */

/* A connection ID of QUIC, zeros after its end. Nothing has it with the length 0. */
struct connection_id {
	u8 id[CONNECTION_ID_MAX];
	u32 length;
} __attribute__((aligned(8)));

/* Where a QUIC connection belongs. */
struct connection {
	struct flow_word word;
	u32 path; /* the kernel's hash of the addresses and ports that were seen last, 0 for none */
	u32 unused;
};

/* What a watched socket has sent, in a map by its cookie. */
struct sent {
	u64 packets;
	u64 last_ns; /* CLOCK_MONOTONIC, 0 for never */
};

/* A socket to end, in a map by its cookie. */
struct target {
	struct tuple tuple; /* `state` is not compared */
	u32 states;	    /* those that it may have by now: 1 << state */
	u32 unused;
};

/* What became of a target that still matched. */
struct outcome {
	u64 cookie;
	s32 error; /* 0, or a negative errno */
	u32 unused;
};

/* A socket that begins to listen, or is bound. */
struct listen_event {
	u64 time_ns;	/* CLOCK_MONOTONIC */
	u64 inode;	/* of the socket */
	u8 address[16]; /* network order; of an IPv4 address the first four bytes */
	u32 pid;	/* of the process, in the PID namespace of who waits, or 0 */
	u32 uid;	/* of the socket */
	u32 device;	/* index of the device it is bound to, or 0 */
	u16 family;	/* 0: nothing is known of the socket but its port */
	u16 port;	/* host order */
	u32 v6only;
	u32 reuseport;
};

/* What a reset ended; bpf/proof/tcp_resets.c tells how it is known. */
enum reset_kind {
	RESET_NEVER_ACCEPTED,
	RESET_ACCEPTED,
	RESET_HANDSHAKE,
	RESET_REFUSED,
};

/* A socket among the descriptors of a process. */
struct held_socket {
	u64 inode;
	u32 pid; /* of the process, in the PID namespace of who asks */
	u32 fd;
};

#define SAME_SIZE(record, RECORD) \
	_Static_assert(sizeof(struct record) == SIZEOF_##RECORD, #record " is another one in kernel/abi.py")
SAME_SIZE(tuple, TUPLE);
SAME_SIZE(held_socket, HELD_SOCKET);
SAME_SIZE(socket_record, SOCKET_RECORD);
SAME_SIZE(listener_record, LISTENER_RECORD);
SAME_SIZE(udp_record, UDP_RECORD);
SAME_SIZE(flow_key, FLOW_KEY);
SAME_SIZE(flow_word, FLOW_WORD);
SAME_SIZE(connection_id, CONNECTION_ID);
SAME_SIZE(connection, CONNECTION);
SAME_SIZE(sent, SENT);
SAME_SIZE(target, TARGET);
SAME_SIZE(outcome, OUTCOME);
SAME_SIZE(listen_event, LISTEN_EVENT);
