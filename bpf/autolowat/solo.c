// SPDX-License-Identifier: GPL-2.0
/*
 * AutoLOWAT on a stock kernel, for this end alone: whatever the peer is (docs/autolowat.md).
 *
 * 1. `solo_tc` sees every segment before TCP does, follows the frames by sequence number, and marks some segments: it changes
 *    two bytes of the header that mean nothing, so that the segment misses TCP's header prediction.
 * 2. For a marked segment TCP calls `autolowat_solo` with the socket locked, before the data is queued (PARSE_HDR_OPT, "hook
 *    A"). It sets SO_RCVLOWAT: to what the open frame still needs, or to 1.
 * 3. While SO_RCVLOWAT is above 1 the program also runs for everything that the socket sends, an acknowledgement
 *    at least (HDR_OPT_LEN, "hook B"). It mends what went past the tc program.
 *
 * A segment is marked where a frame of several segments begins, if its reader waits for it, and where such a frame ends.
 */
#ifndef FRAMES_MAX
#define FRAMES_MAX 32
#endif
#include "autolowat/solo.h"

#define TCX_NEXT -1
#define PACKET_HOST 0
#define ETH_HEADER 14
#define PROTO_IP 0x0800
#define PROTO_IPV6 0x86dd
#define PROTO_TCP 6

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_URG 0x20
#define TCP_ECE 0x40
#define TCP_CWR 0x80
/* With one of these a segment misses header prediction by itself. */
#define TCP_SLOW (TCP_FIN | TCP_URG | TCP_ECE | TCP_CWR)
#define ECN_MODES 0x11 /* of tcp_sock.ecn_flags: TCP_ECN_OK, and TCP_ECN_MODE_ACCECN (Linux 6.18) */

/* tcp_sock.tcp_header_len: without and with timestamps, and nothing else */
#define HEADER_PLAIN 20
#define HEADER_STAMPED 32

#define PARSE_FLAG BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG
#define WRITE_FLAG BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG
#define STATE_FLAG BPF_SOCK_OPS_STATE_CB_FLAG
#define SKIP_MAX 63

/* --- tc: before TCP, without the socket's lock --- */

struct segment {
	u32 seq, stop;
	u32 tcp; /* where the TCP header is in the skb */
	u32 payload;
	u32 flags;
};

static __always_inline bool is_for_us(u8 *tcp)
{
	return is_our_port(bpf_ntohs(*(u16 *)(tcp + 2))) || (ARM_ACTIVE && is_our_port(bpf_ntohs(*(u16 *)tcp)));
}

/* The length of the packet by its IP header, and where TCP begins; 0 for a packet that TCP would not get from here. */
static __always_inline u32 read_ip(struct __sk_buff *skb, u8 *ip, u32 *header)
{
	u32 total;

	if (skb->protocol == bpf_htons(PROTO_IP)) {
		*header = (ip[0] & 0xf) * 4;
		if (ip[0] >> 4 != 4 || *header < 20 || ip[9] != PROTO_TCP || *(u16 *)(ip + 6) & bpf_htons(0x3fff))
			return 0;
		total = bpf_ntohs(*(u16 *)(ip + 2));
	} else {
		*header = 40;
		if (ip[0] >> 4 != 6 || ip[6] != PROTO_TCP) /* with extension headers: not followed */
			return 0;
		total = bpf_ntohs(*(u16 *)(ip + 4));
		total += total ? 40 : 0;
	}
	/* Segments that were merged may be longer than the field can say. */
	return total ?: ~0;
}

static __always_inline void read_addresses(struct __sk_buff *skb, u8 *ip, u8 *tcp, struct key *key)
{
	key->remote_port = *(u16 *)tcp;
	key->local_port = *(u16 *)(tcp + 2);
	if (skb->protocol == bpf_htons(PROTO_IP)) {
		map_address(key->remote, *(u32 *)(ip + 12));
		map_address(key->local, *(u32 *)(ip + 16));
	} else {
		__builtin_memcpy(key->remote, ip + 8, 16);
		__builtin_memcpy(key->local, ip + 24, 16);
	}
}

/* Whether it is a segment with data for one of our ports. `link` is the length of the device's header. */
static __always_inline bool read_segment(struct __sk_buff *skb, u32 link, struct key *key, struct segment *segment)
{
	u8 *ip = (u8 *)(long)skb->data + link, *end = (u8 *)(long)skb->data_end, *tcp;
	u32 header, total, length = skb->len - link, least = 60;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return false;
	if (skb->protocol == bpf_htons(PROTO_IP))
		least = 40;
	else if (skb->protocol != bpf_htons(PROTO_IPV6))
		return false;
	if (ip + least > end) {
		/* Some drivers leave headers in pages. A packet that is too short is none of ours. */
		if (length < least || bpf_skb_pull_data(skb, link + least))
			return false;
		ip = (u8 *)(long)skb->data + link;
		end = (u8 *)(long)skb->data_end;
	}
	if (ip + 40 > end)
		return false;
	total = read_ip(skb, ip, &header);
	tcp = ip + header;
	if (!total || tcp + 20 > end || !is_for_us(tcp))
		return false;
	total = total == ~0 ? length : total;
	header += (tcp[12] >> 4) * 4;
	segment->flags = tcp[13];
	if (total > length || total <= header || (segment->flags & (TCP_SYN | TCP_RST | TCP_ACK)) != TCP_ACK)
		return false;
	segment->seq = bpf_ntohl(*(u32 *)(tcp + 4));
	segment->stop = segment->seq + total - header;
	segment->tcp = (u64)tcp - (u64)(ip - link);
	segment->payload = link + header;
	read_addresses(skb, ip, tcp, key);
	return true;
}

/*
 * The ECE bit, and the urgent pointer less by as much, which leaves the checksum right. TCP ignores both, without ECN and
 * without URG. One write of eight bytes by the helper: a direct one would make every clone pay.
 */
static __always_inline long mark_ece(struct __sk_buff *skb, u32 tcp)
{
	u16 words[4]; /* flags, window, checksum, urgent pointer */
	u32 urgent;

	if (bpf_skb_load_bytes(skb, tcp + 12, words, sizeof(words)))
		return -1;
	urgent = bpf_ntohs(words[3]) + 0xffff - TCP_ECE;
	words[0] |= bpf_htons(TCP_ECE);
	words[3] = bpf_htons((urgent & 0xffff) + (urgent >> 16));
	return bpf_skb_store_bytes(skb, tcp + 12, words, sizeof(words), 0);
}

/*
 * With ECN and timestamps: NOP NOP TIMESTAMP becomes TIMESTAMP NOP NOP, which leaves the checksum right, too. Header
 * prediction expects the first; a segment that has something else misses it by itself.
 */
static __always_inline long mark_timestamp(struct __sk_buff *skb, u32 tcp)
{
	u16 from[6], to[6];

	if (bpf_skb_load_bytes(skb, tcp + 20, from, sizeof(from)))
		return -1;
	if (from[0] != bpf_htons(0x0101) || from[1] != bpf_htons(0x080a))
		return 0;
	to[0] = from[1];
	to[1] = from[2];
	to[2] = from[3];
	to[3] = from[4];
	to[4] = from[5];
	to[5] = from[0];
	return bpf_skb_store_bytes(skb, tcp + 20, to, sizeof(to), 0);
}

static __always_inline long mark(struct __sk_buff *skb, struct segment *segment, struct flow *flow)
{
	count(MARKS, 1);
	if (segment->flags & TCP_SLOW)
		return 0;
	return flow->ecn ? mark_timestamp(skb, segment->tcp) : mark_ece(skb, segment->tcp);
}

/* Follow a segment that is not the next one. `skip`: TCP will not take it, or has all of it. */
static __always_inline u32 step_aside(void *sk, struct stream *stream, struct segment *segment, bool *skip)
{
	u32 received = 0, wup = 0, window = 0;

	READ(received, sk, OFF_RCV_NXT);
	READ(wup, sk, OFF_RCV_WUP);
	READ(window, sk, OFF_RCV_WND);
	*skip = !after(segment->stop, received) || after(segment->seq, wup + window);
	if (*skip || after(segment->seq, stream->next))
		return NO_DOUBT;
	return rewind(stream, segment->seq, segment->stop, received);
}

static __always_inline bool is_open(struct stream *stream)
{
	return stream->next != stream->start;
}

/* Everything of this segment that the lock does not need to keep. */
struct finding {
	u32 doubt, frames;
	bool odd; /* TCP's own order is not ours: have the mark looked at again */
	bool skip;
	bool fresh;   /* something of it was not followed before, at this device or at the one below */
	bool reached; /* the reader has come to the open frame, and nobody was asked about its goal */
};

static __always_inline void look(struct __sk_buff *skb, struct flow *flow, struct stream *stream,
				 struct segment *segment, struct finding *found)
{
	void *sk = (void *)(long)flow->sk;
	u32 frames = stream->frames, next = stream->next, furthest = stream->furthest;

	found->odd = segment->seq != stream->next || is_blind(stream);
	if (segment->seq != stream->next)
		found->doubt = step_aside(sk, stream, segment, &found->skip);
	if (found->doubt || found->skip)
		return;
	found->doubt = follow(skb, stream, segment->seq, segment->payload, segment->stop - segment->seq);
	found->frames = stream->frames - frames;
	found->fresh = after(stream->next, next) || after(stream->furthest, furthest);
	found->odd |= is_blind(stream);
	if (is_open(stream) && goal(stream) != flow->answered)
		found->reached = !after(stream->start, copied_seq(sk));
}

/* Under the lock: whether TCP must call us for this segment. */
static __always_inline bool wants_mark(struct flow *flow, struct finding *found)
{
	if (flow->doubt || found->odd || (flow->lowat > 1 && found->frames))
		return true;
	if (!found->reached || goal(&flow->stream) == flow->answered)
		return false;
	if (flow->lowat == 1 && flow->skip) {
		flow->skip--;
		flow->answered = goal(&flow->stream);
		return false;
	}
	return true;
}

/* One try: another processor may have followed another segment meanwhile. Whether it is done. */
static __always_inline bool advance(struct __sk_buff *skb, struct flow *flow, struct segment *segment, bool last,
				    bool *wanted)
{
	struct finding found = {};
	struct stream stream;
	u32 turn, doubt;
	bool done;

	bpf_spin_lock(&flow->lock);
	stream = flow->stream;
	turn = flow->turn;
	doubt = flow->doubt;
	bpf_spin_unlock(&flow->lock);
	found.doubt = doubt;
	if (!doubt)
		look(skb, flow, &stream, segment, &found);
	if (found.skip)
		return true;
	bpf_spin_lock(&flow->lock);
	done = flow->turn == turn;
	if (done) {
		flow->stream = stream;
		flow->turn++;
		flow->doubt = flow->doubt ?: found.doubt;
		*wanted = wants_mark(flow, &found);
	} else if (last) {
		flow->doubt = DOUBT_RACE;
		*wanted = true;
	}
	bpf_spin_unlock(&flow->lock);
	if (done && found.frames)
		count(FRAMES, found.frames);
	else if (done && found.fresh && !found.doubt)
		count(SAVED, 1);
	return done;
}

/*
 * The common cases by one lock and no copy: in sequence, more of a frame whose end is known or the first of a new one, and
 * not beyond its end. Whether it is done. What is read before the lock is looked at again.
 */
static __always_inline bool advance_simply(struct __sk_buff *skb, struct flow *flow, struct segment *segment,
					   bool *wanted)
{
	u32 known = flow->stream.known, end = flow->stream.end, size = segment->stop - segment->seq, length;
	struct stream *stream = &flow->stream;
	struct finding found = {};
	u8 header[16];
	bool simple;

	if (!known) {
		if (stream->start != segment->seq || size < FRAMING_HEADER ||
		    bpf_skb_load_bytes(skb, segment->payload, header, FRAMING_HEADER))
			return false;
		length = frame_length(header);
		if (!length)
			return false;
		end = segment->seq + length;
	}
	if (end != segment->stop && end != flow->answered)
		found.reached = !after(stream->start, copied_seq((void *)(long)flow->sk));
	bpf_spin_lock(&flow->lock);
	simple = stream->next == segment->seq && stream->known == known && !after(segment->stop, end) && !flow->doubt &&
		 !is_blind(stream) && (known ? stream->end == end : stream->start == segment->seq);
	if (simple) {
		stream->end = end;
		stream->known = 1;
		stream->next = segment->stop;
		stream->furthest = segment->stop;
		if (end == segment->stop) {
			end_frame(stream);
			found.frames = 1;
		}
		flow->turn++;
		*wanted = wants_mark(flow, &found);
	}
	bpf_spin_unlock(&flow->lock);
	if (simple)
		count(end == segment->stop ? FRAMES : SAVED, 1);
	return simple;
}

static __always_inline int ingress(struct __sk_buff *skb, u32 link)
{
	struct segment segment = {};
	struct key key = {};
	struct flow *flow;
	bool wanted = false;

	if (!read_segment(skb, link, &key, &segment))
		return TCX_NEXT;
	flow = bpf_map_lookup_elem(sockets_map, &key);
	if (!flow)
		return TCX_NEXT;
	if (!setting(WORKING))
		wanted = true;
	else if (!advance_simply(skb, flow, &segment, &wanted) && !advance(skb, flow, &segment, false, &wanted))
		advance(skb, flow, &segment, true, &wanted);
	if (wanted && mark(skb, &segment, flow))
		flow->doubt = DOUBT_REFUSED;
	return TCX_NEXT;
}

/* The result leaves the packet to the programs that come after this one. */
int solo_tc(struct __sk_buff *skb)
{
	return ingress(skb, ETH_HEADER);
}

/* For devices without a link-layer header: tunnels. */
int solo_tc_raw(struct __sk_buff *skb)
{
	return ingress(skb, 0);
}

/* --- SOCK_OPS: with the socket locked --- */

/*
 * In a context the verifier refuses one load of two fields, which volatile keeps the compiler from, and one of a chosen field,
 * which the barrier does.
 */
static __always_inline void make_key(volatile struct bpf_sock_ops *skops, struct key *key)
{
	u32 remote, local;

	key->remote_port = bpf_htons(bpf_ntohl(skops->remote_port));
	key->local_port = bpf_htons(skops->local_port);
	if (skops->family == FAMILY_INET6) {
		key->remote[0] = skops->remote_ip6[0];
		key->remote[1] = skops->remote_ip6[1];
		key->remote[2] = skops->remote_ip6[2];
		key->remote[3] = skops->remote_ip6[3];
		key->local[0] = skops->local_ip6[0];
		key->local[1] = skops->local_ip6[1];
		key->local[2] = skops->local_ip6[2];
		local = skops->local_ip6[3];
		asm volatile("" : "+r"(local));
		key->local[3] = local;
		return;
	}
	remote = skops->remote_ip4;
	local = skops->local_ip4;
	map_address(key->remote, remote);
	map_address(key->local, local);
}

/*
 * Less than what the window still takes: a sender waits until a segment fits, which is the smaller of the MSS that we
 * announced and half of the window.
 */
static __always_inline u32 reachable(void *sk, u32 copied)
{
	u32 wup = 0, window = 0, room, reserve;
	u16 advmss = 0;

	READ(wup, sk, OFF_RCV_WUP);
	READ(window, sk, OFF_RCV_WND);
	READ(advmss, sk, OFF_ADVMSS);
	room = wup + window - copied;
	reserve = advmss < room / 2 ? advmss : room / 2;
	return room > reserve ? room - reserve : 1;
}

/*
 * recv() on a blocking socket looks at the mark once, when it is called, and sleeps until so much has come, whatever the
 * mark is by then. After a reader took part of a frame the mark is too high until the next segment, and there is no
 * callback for that: such a recv() could sleep for good. So the file must be non-blocking, and somebody must wait for the
 * socket by epoll, poll or select just now; one that is not accepted yet, or that is being handed over, is left alone.
 */
static __always_inline bool may_sleep_in_recv(void *sk)
{
	void *user = NULL, *socket = NULL, *file = NULL, *queue = NULL, *waiter = NULL;
	u32 flags = 0;

	/* A sockmap, or a part of the kernel that reads the socket. */
	READ(user, sk, OFF_USER_DATA);
	if (user)
		return true;
	READ(socket, sk, OFF_SOCKET);
	if (!socket)
		return true;
	READ(file, socket, OFF_FILE);
	if (!file)
		return true;
	READ(flags, file, OFF_FILE_FLAGS);
	if (!(flags & NONBLOCK))
		return true;
	READ(queue, sk, OFF_WAIT_QUEUE);
	READ(waiter, queue, OFF_WAIT_HEAD);
	return waiter == queue + OFF_WAIT_HEAD;
}

/* What is read of the socket before the lock is taken, under which no helper may be called. */
struct reader {
	u32 copied, most;
	bool sleeps;
	bool asked; /* a frame may be open that the reader has come to */
};

static __always_inline void read_reader(void *sk, struct flow *flow, struct reader *reader)
{
	reader->copied = copied_seq(sk);
	reader->asked = is_open(&flow->stream) && !after(flow->stream.start, reader->copied);
	if (!reader->asked)
		return;
	reader->sleeps = may_sleep_in_recv(sk);
	reader->most = reachable(sk, reader->copied);
}

/* The mark for what has come so far. */
static __always_inline u32 wanted(struct flow *flow, struct reader *reader)
{
	struct stream *stream = &flow->stream;
	u32 missing;

	/* A whole frame waits, of which the reader may take a part and come back; or what comes next is not known. */
	if (!reader->asked || reader->sleeps || !is_open(stream) || after(stream->start, reader->copied) ||
	    is_blind(stream) || !after(goal(stream), reader->copied))
		return 1;
	missing = goal(stream) - reader->copied;
	if (missing <= reader->most)
		return missing;
	/* The window moves with each segment, but the mark need not. */
	return flow->lowat > reader->most / 2 && flow->lowat <= reader->most ? flow->lowat : reader->most;
}

/* A reader that sleeps in recv() is asked for more and more seldom. */
static __always_inline void answer(struct flow *flow, struct reader *reader, u32 lowat)
{
	flow->copied = reader->copied;
	if (!reader->asked)
		return;
	flow->answered = goal(&flow->stream);
	flow->refused = !reader->sleeps ? 0 : flow->refused < SKIP_MAX ? flow->refused * 2 + 1 : SKIP_MAX;
	flow->skip = flow->refused;
}

static __always_inline long set_lowat(struct bpf_sock_ops *skops, struct flow *flow, u32 before, u32 lowat)
{
	u32 flags = skops->bpf_sock_ops_cb_flags;
	int value = lowat;

	if (lowat == before)
		return 0;
	if (flow->flags & WRITE_FLAG && (lowat > 1) != (before > 1))
		bpf_sock_ops_cb_flags_set(skops, lowat > 1 ? flags | WRITE_FLAG : flags & ~WRITE_FLAG);
	return bpf_setsockopt(skops, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof(value));
}

static __always_inline void give_up(struct bpf_sock_ops *skops, struct key *key, struct flow *flow, u32 doubt)
{
	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags & ~flow->flags);
	if (doubt && doubt < DOUBTS)
		count(FAIL_OPENS + doubt, 1);
	bpf_map_delete_elem(sockets_map, key);
}

/* Bring SO_RCVLOWAT up to date, or give up. `finished`: nothing will follow. */
static __always_inline void settle(struct bpf_sock_ops *skops, void *sk, struct key *key, struct flow *flow, u32 doubt,
				   bool finished)
{
	u32 before, lowat, received = skops->rcv_nxt;
	struct reader reader = {};

	read_reader(sk, flow, &reader);
	bpf_spin_lock(&flow->lock);
	doubt = flow->doubt ?: doubt;
	if (!doubt && after(received, flow->stream.next))
		doubt = is_blind(&flow->stream) ? DOUBT_ORDER : DOUBT_UNSEEN;
	finished |= doubt != NO_DOUBT;
	before = flow->lowat;
	lowat = finished ? 1 : wanted(flow, &reader);
	/* From here on the tc program marks the segment that ends the frame. */
	flow->lowat = lowat;
	answer(flow, &reader, lowat);
	bpf_spin_unlock(&flow->lock);
	if (set_lowat(skops, flow, before, lowat))
		flow->doubt = DOUBT_REFUSED;
	if (finished)
		give_up(skops, key, flow, doubt);
}

/* Hook A. The segment is not queued yet. An acknowledgement alone changes nothing. */
static __always_inline void parsed(struct bpf_sock_ops *skops)
{
	u32 flags = skops->skb_tcp_flags, header = (long)skops->skb_data_end - (long)skops->skb_data;
	struct key key = {};
	struct flow *flow;
	void *sk;

	if (skops->skb_len <= header && !(flags & TCP_FIN))
		return;
	sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	make_key(skops, &key);
	flow = flow_of(sk, &key);
	if (flow)
		settle(skops, sk, &key, flow, flags & TCP_URG ? DOUBT_URGENT : NO_DOUBT,
		       flags & TCP_FIN || !setting(WORKING));
}

/*
 * The frame is still open, all that came has been followed, and the reader has taken nothing since. Without the lock: what
 * changes meanwhile has a callback of its own.
 */
static __always_inline bool is_settled(struct bpf_sock_ops *skops, struct flow *flow, u32 copied)
{
	return flow->copied == copied && !flow->doubt && !after(skops->rcv_nxt, flow->stream.next) &&
	       !after(flow->stream.start, copied) && setting(WORKING);
}

/* Hook B. */
static __always_inline void sending(struct bpf_sock_ops *skops)
{
	struct key key = {};
	struct flow *flow;
	void *sk;

	/* The kernel only asks how large a segment may be. */
	if (skops->args[0] == BPF_WRITE_HDR_TCP_CURRENT_MSS)
		return;
	sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	make_key(skops, &key);
	flow = flow_of(sk, &key);
	if (flow && flow->lowat > 1 && !is_settled(skops, flow, copied_seq(sk)))
		settle(skops, sk, &key, flow, NO_DOUBT, !setting(WORKING));
}

static __always_inline bool is_in_namespace(void *sk)
{
	void *net = NULL;
	u32 inode = 0;

	READ(net, sk, OFF_NET);
	READ(inode, net, OFF_NET_INODE);
	return inode == setting(NETNS);
}

/*
 * Begin to follow. Not where another socket has the same addresses, in a VRF or by a link, and a mark that is up; nor where
 * segments cannot be marked: they are signed (MD5, AO), or there is ECN without timestamps.
 */
static __always_inline bool arm(struct key *key, void *sk, u32 seq, u32 flags)
{
	struct flow flow = {
		.turn = bpf_get_prandom_u32(), .lowat = 1, .answered = seq, .copied = seq, .flags = flags
	};
	struct flow *other = bpf_map_lookup_elem(sockets_map, key);
	u16 header = 0;
	u8 ecn = 0;

	if (other && other->lowat > 1)
		return false;
	READ(header, sk, OFF_HEADER_LEN);
	READ(ecn, sk, OFF_ECN_FLAGS);
	flow.ecn = ecn & ECN_MODES;
	if (header != HEADER_STAMPED && (header != HEADER_PLAIN || flow.ecn))
		return false;
	flow.sk = (u64)(long)sk;
	begin(&flow.stream, seq);
	if (bpf_map_update_elem(sockets_map, key, &flow, BPF_ANY))
		return false;
	count(OPTED_IN, 1);
	return true;
}

static __always_inline void established(struct bpf_sock_ops *skops, u32 port)
{
	u32 now = skops->bpf_sock_ops_cb_flags, wanted_flags = PARSE_FLAG | STATE_FLAG;
	void *sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	struct key key = {};

	if (!setting(WORKING) || !is_our_port(port) || !is_in_namespace(sk) || is_taken(sk))
		return;
	make_key(skops, &key);
	/* Without ports the callbacks wait for an application that opts in. */
	if (!setting(ARM_PORTS) || arm(&key, sk, skops->rcv_nxt, (wanted_flags | WRITE_FLAG) & ~now))
		bpf_sock_ops_cb_flags_set(skops, now | wanted_flags);
}

static __always_inline void closed(struct bpf_sock_ops *skops)
{
	void *sk = raw_sock(skops, OFF_SOCK_OPS_SK);
	struct key key = {};

	make_key(skops, &key);
	if (flow_of(sk, &key))
		bpf_map_delete_elem(sockets_map, &key);
}

int autolowat_solo(struct bpf_sock_ops *skops)
{
	switch (skops->op) {
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		parsed(skops);
		break;
	case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
		sending(skops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(skops, skops->local_port);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		if (ARM_ACTIVE)
			established(skops, bpf_ntohl(skops->remote_port));
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (skops->args[1] == BPF_TCP_CLOSE)
			closed(skops);
		break;
	}
	return 1;
}

/* --- cgroup/setsockopt: the application opts in --- */

/* Whether everything that has come has been read: the quiet point at which a program may begin to follow. */
static __always_inline bool is_drained(void *sk)
{
	void *backlog = NULL;
	u32 received = 0;

	READ(received, sk, OFF_RCV_NXT);
	READ(backlog, sk, OFF_BACKLOG_TAIL);
	return received == copied_seq(sk) && !backlog;
}

static __always_inline int start(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw)
{
	struct key key = {};
	struct flow *flow;
	u32 next = 0, added = PARSE_FLAG | STATE_FLAG;
	u8 now = 0;

	read_key(raw, &key);
	flow = flow_of(raw, &key);
	if (!setting(WORKING) || (flow && !flow->doubt) || !is_in_namespace(raw))
		return 0;
	if (!is_drained(raw))
		return -EUCLEAN;
	READ(now, raw, OFF_CB_FLAGS);
	/* Its connection was there before us, and an older kernel has no way to switch callbacks on now: a plain socket. */
	if (is_taken(raw) || ((now & added) != added && (!CAN_SET || set_flags(sk, raw, added, 0))))
		return 0;
	READ(next, raw, OFF_RCV_NXT);
	arm(&key, raw, next, WRITE_FLAG & ~now);
	return 0;
}

/* The flags stay until the next callback, which finds that it is over. */
static __always_inline void stop(struct bpf_sockopt *ctx, struct bpf_sock *sk, void *raw, u32 doubt)
{
	struct key key = {};
	struct flow *flow;
	u32 before;
	int one = 1;

	read_key(raw, &key);
	flow = flow_of(raw, &key);
	if (!flow)
		return;
	bpf_spin_lock(&flow->lock);
	before = flow->lowat;
	flow->doubt = doubt ?: DOUBTS;
	/* SO_RCVLOWAT, ours or the application's, goes on to the kernel. */
	if (CAN_SET || ctx->level == SOL_SOCKET || !doubt)
		flow->lowat = 1;
	bpf_spin_unlock(&flow->lock);
#if CAN_SET
	if (before > 1)
		bpf_setsockopt(sk, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof(one));
#endif
}

#include "autolowat/optin.h"

int autolowat_sockopt(struct bpf_sockopt *ctx)
{
	return sockopt(ctx);
}
