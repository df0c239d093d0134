/* Carries Ethernet frames between a TAP device of this network namespace and a socket, as a virtual machine monitor would.
 *
 *   bridge [OPTIONS] TAP vfkit LOCAL PEER   unix datagrams, one frame each: bind LOCAL, connect to PEER, send "VFKT" first
 *   bridge [OPTIONS] TAP pair LOCAL PEER    the same without the greeting: two of these back to back are the ceiling of
 *                                           the measurement
 *   bridge [OPTIONS] TAP qemu PATH          unix stream, each frame behind its length (4 bytes, big-endian)
 *   bridge [OPTIONS] TAP tap NETNS OTHER    another TAP, in the namespace of the file NETNS
 *
 *   --offload BYTES   the card takes segmentation and checksums off the guest, as libkrun does with CSUM and HOST_TSO4:
 *                     frames up to 64 KiB with partial checksums come out, without the virtio header. Nothing is taken
 *                     off the other side (no GUEST_TSO4): frames longer than BYTES are lost on their way to the guest.
 *                     Two of mode `pair` keep the virtio header between them.
 *   --loss SHARE      lose this share of the frames, 0..1, in each direction
 *   --delay SECONDS   hold each frame for so long, in each direction
 *   --seed NUMBER     which frames are lost
 *
 * Prints "tap" when the device exists and "up" when the other side is connected. Never drops on the socket's side of its
 * own accord: while the socket is full the TAP is not read, and the kernel's queue of the TAP does what the queue of a
 * network card does.
 * Ends when the other side goes (exit status 0), on SIGTERM, and with the process that started it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MIN_FRAME = 14,
    MAX_FRAME = 65562,     /* 14 bytes of Ethernet, a 65,535-byte packet and what virtio may add */
    HEADER = sizeof(struct virtio_net_hdr),
    BATCH = 64,            /* frames moved in one direction before the other gets its turn */
    STREAM_BUFFER = 1 << 20,
    STREAM_BATCH = 256 << 10, /* bytes gathered into one write to the stream */
    SOCKET_BUFFER = 7 << 20,
    CONNECT_SECONDS = 20,
    LINE_BYTES = 64 << 20, /* held in one direction: 20 ms of 25 Gbit/s */
};

static enum { VFKIT, PAIR, QEMU, TAP } mode;
static int tap_fd, socket_fd; /* of mode `tap`: the other TAP */
static size_t largest_to_guest = MAX_FRAME;
static int offload, strip; /* strip: the virtio header ends here */

static void die(const char *what) {
    fprintf(stderr, "bridge: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void finish_if_peer_is_gone(const char *what) {
    if (errno == ECONNREFUSED || errno == ECONNRESET || errno == EPIPE || errno == ENOTCONN || errno == ENOENT) exit(0);
    die(what);
}

static int would_block(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == EINTR; }

static int open_tap(const char *name) {
    struct ifreq request = {0};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) die("/dev/net/tun");
    request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | (offload ? IFF_VNET_HDR : 0));
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request) < 0) die(name);
    if (offload && ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4) < 0) die("TUNSETOFFLOAD");
    return fd;
}

static void enter_namespace(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, CLONE_NEWNET) < 0) die(path);
    close(fd);
}

static struct sockaddr_un unix_address(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        die(path);
    }
    strcpy(address.sun_path, path);
    return address;
}

static void open_socket(int type, const char *local, const char *peer) {
    const int size = SOCKET_BUFFER;
    socket_fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (socket_fd < 0) die("socket");
    /* Beyond net.core.?mem_max where we may; else as much as that allows. */
    if (setsockopt(socket_fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size) < 0)
        setsockopt(socket_fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    if (setsockopt(socket_fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size) < 0)
        setsockopt(socket_fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    if (local) {
        struct sockaddr_un address = unix_address(local);
        unlink(local);
        if (bind(socket_fd, (struct sockaddr *)&address, sizeof address) < 0) die(local);
    }
    struct sockaddr_un address = unix_address(peer);
    for (int tries = 0; connect(socket_fd, (struct sockaddr *)&address, sizeof address) < 0; tries++) {
        if ((errno != ENOENT && errno != ECONNREFUSED) || tries > CONNECT_SECONDS * 2000) die(peer);
        nanosleep(&(struct timespec){.tv_nsec = 500 * 1000}, NULL);
    }
    if (fcntl(socket_fd, F_SETFL, O_NONBLOCK) < 0) die("fcntl");
}

static ssize_t read_tap(uint8_t *frame) {
    struct virtio_net_hdr header;
    struct iovec parts[2] = {{&header, HEADER}, {frame, MAX_FRAME}};
    ssize_t length = strip ? readv(tap_fd, parts, 2) : read(tap_fd, frame, MAX_FRAME);
    if (length < 0 && !would_block()) die("read from the TAP");
    return length < 0 || !strip ? length : length - HEADER;
}

static void write_tap(uint8_t *frame, size_t length) {
    struct virtio_net_hdr nothing_left_to_do = {0};
    struct iovec parts[2] = {{&nothing_left_to_do, HEADER}, {frame, length}};
    if (length > largest_to_guest) return;
    /* The kernel refuses frames that are no frames (EINVAL) and takes none while the device is down (EIO): lost, as on a wire. */
    ssize_t written = strip ? writev(tap_fd, parts, 2) : write(tap_fd, frame, length);
    if (written < 0 && errno != EINVAL && errno != EIO && !would_block()) die("write to the TAP");
}

/* ---- loss and delay ---- */

static double loss, delay;
static int impaired;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Frames on their way in one direction, in order, each with the time it arrives: a ring of entries, none wrapped. */
struct entry {
    double due;
    size_t length; /* 0: the rest of the ring is empty, go on at its beginning */
    uint8_t frame[];
};
struct line {
    uint8_t *bytes;
    size_t head, tail, used;
    uint64_t dice;
};
static struct line to_guest = {.dice = 1}, to_host = {.dice = 2};

/* xorshift64*: of one seed, each direction loses the same of its frames. */
static int lost(struct line *line) {
    line->dice ^= line->dice >> 12;
    line->dice ^= line->dice << 25;
    line->dice ^= line->dice >> 27;
    return (double)((line->dice * 0x2545F4914F6CDD1DULL) >> 11) * 0x1p-53 < loss;
}

static size_t entry_size(size_t length) { return (sizeof(struct entry) + length + 15) & ~(size_t)15; }

static int has_room(const struct line *line) { return LINE_BYTES - line->used > 3 * entry_size(MAX_FRAME); }

/* Loses the frame by chance, and when the line is full. */
static void enter_line(struct line *line, const uint8_t *frame, size_t length, double at) {
    if (lost(line) || !has_room(line)) return;
    if (line->head + entry_size(MAX_FRAME) + sizeof(struct entry) > LINE_BYTES) {
        ((struct entry *)(line->bytes + line->head))->length = 0;
        line->used += LINE_BYTES - line->head;
        line->head = 0;
    }
    struct entry *entry = (struct entry *)(line->bytes + line->head);
    entry->due = at + delay;
    entry->length = length;
    memcpy(entry->frame, frame, length);
    line->head += entry_size(length);
    line->used += entry_size(length);
}

static struct entry *first_in_line(struct line *line) {
    if (!line->used) return NULL;
    struct entry *entry = (struct entry *)(line->bytes + line->tail);
    if (entry->length) return entry;
    line->used -= LINE_BYTES - line->tail;
    line->tail = 0;
    return line->used ? (struct entry *)line->bytes : NULL;
}

static void leave_line(struct line *line, const struct entry *entry) {
    line->tail += entry_size(entry->length);
    line->used -= entry_size(entry->length);
}

static void arrived_from_socket(uint8_t *frame, size_t length) {
    if (impaired)
        enter_line(&to_guest, frame, length, now());
    else
        write_tap(frame, length);
}

/* ---- datagrams: one frame each ---- */

static uint8_t to_socket[BATCH][MAX_FRAME], to_tap[BATCH][MAX_FRAME];
static struct mmsghdr outgoing[BATCH], incoming[BATCH];
static struct iovec outgoing_io[BATCH], incoming_io[BATCH];
static int pending, pending_sent;

static void datagrams_prepare(void) {
    for (int i = 0; i < BATCH; i++) {
        outgoing_io[i].iov_base = to_socket[i];
        incoming_io[i] = (struct iovec){to_tap[i], MAX_FRAME};
        outgoing[i].msg_hdr = (struct msghdr){.msg_iov = &outgoing_io[i], .msg_iovlen = 1};
        incoming[i].msg_hdr = (struct msghdr){.msg_iov = &incoming_io[i], .msg_iovlen = 1};
    }
}

static void datagrams_flush(void) {
    while (pending_sent < pending) {
        int sent = sendmmsg(socket_fd, outgoing + pending_sent, (unsigned)(pending - pending_sent), 0);
        if (sent < 0) {
            if (would_block()) return;
            finish_if_peer_is_gone("send");
        }
        pending_sent += sent;
    }
    pending = pending_sent = 0;
}

static void datagrams_from_tap(void) {
    while (pending < BATCH) {
        ssize_t length = read_tap(to_socket[pending]);
        if (length < 0) break;
        outgoing_io[pending++].iov_len = (size_t)length;
    }
    datagrams_flush();
}

static void datagrams_from_socket(void) {
    int count = recvmmsg(socket_fd, incoming, BATCH, 0, NULL);
    if (count < 0) {
        if (would_block()) return;
        finish_if_peer_is_gone("receive");
    }
    for (int i = 0; i < count; i++)
        if (incoming[i].msg_len >= MIN_FRAME) arrived_from_socket(to_tap[i], incoming[i].msg_len);
}

/* ---- stream: length and frame ---- */

static uint8_t stream_out[STREAM_BATCH + 4 + MAX_FRAME], stream_in[STREAM_BUFFER];
static size_t out_length, out_sent, in_length;

static void stream_flush(void) {
    while (out_sent < out_length) {
        ssize_t sent = send(socket_fd, stream_out + out_sent, out_length - out_sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (would_block()) return;
            finish_if_peer_is_gone("send");
        }
        out_sent += (size_t)sent;
    }
    out_length = out_sent = 0;
}

/* A frame of this length has been put where the next one goes. */
static void stream_prefix(size_t length) {
    uint32_t prefix = htonl((uint32_t)length);
    memcpy(stream_out + out_length, &prefix, 4);
    out_length += 4 + length;
}

static void stream_from_tap(void) {
    for (int frames = 0; frames < BATCH && out_length < STREAM_BATCH; frames++) {
        ssize_t length = read_tap(stream_out + out_length + 4);
        if (length < 0) break;
        stream_prefix((size_t)length);
    }
    stream_flush();
}

static void stream_from_socket(void) {
    ssize_t count = recv(socket_fd, stream_in + in_length, sizeof stream_in - in_length, 0);
    if (count == 0) exit(0);
    if (count < 0) {
        if (would_block()) return;
        finish_if_peer_is_gone("receive");
    }
    in_length += (size_t)count;
    size_t at = 0;
    while (in_length - at >= 4) {
        uint32_t length;
        memcpy(&length, stream_in + at, 4);
        length = ntohl(length);
        if (length < MIN_FRAME || length > MAX_FRAME) {
            fprintf(stderr, "bridge: a frame of %u bytes on the stream\n", length);
            exit(1);
        }
        if (in_length - at < 4 + length) break;
        arrived_from_socket(stream_in + at + 4, length);
        at += 4 + length;
    }
    memmove(stream_in, stream_in + at, in_length - at);
    in_length -= at;
}

/* ---- the loops ---- */

static void other_tap_from_socket(void) {
    for (int frames = 0; frames < BATCH; frames++) {
        ssize_t length = read(socket_fd, to_tap[0], MAX_FRAME);
        if (length < 0) {
            if (would_block()) return;
            finish_if_peer_is_gone("read from the other TAP");
        }
        arrived_from_socket(to_tap[0], (size_t)length);
    }
}

static void from_socket(void) {
    if (mode == QEMU)
        stream_from_socket();
    else if (mode == TAP)
        other_tap_from_socket();
    else
        datagrams_from_socket();
}

/* 0: not now. */
static int send_frame(const uint8_t *frame, size_t length) {
    if (mode == QEMU) {
        if (out_length >= STREAM_BATCH) return 0;
        memcpy(stream_out + out_length + 4, frame, length);
        stream_prefix(length);
        return 1;
    }
    ssize_t sent = mode == TAP ? write(socket_fd, frame, length) : send(socket_fd, frame, length, 0);
    if (sent >= 0 || (mode == TAP && (errno == EINVAL || errno == EIO))) return 1;
    if (would_block()) return 0;
    finish_if_peer_is_gone("send");
    return 0;
}

static void release(double at) {
    struct entry *entry;
    while ((entry = first_in_line(&to_guest)) && entry->due <= at) {
        write_tap(entry->frame, entry->length);
        leave_line(&to_guest, entry);
    }
    while ((entry = first_in_line(&to_host)) && entry->due <= at && send_frame(entry->frame, entry->length))
        leave_line(&to_host, entry);
    if (mode == QEMU) stream_flush();
}

static void run_impaired(void) {
    static uint8_t frame[MAX_FRAME];
    to_guest.bytes = malloc(LINE_BYTES);
    to_host.bytes = malloc(LINE_BYTES);
    if (!to_guest.bytes || !to_host.bytes) die("memory");
    for (;;) {
        const double at = now();
        release(at);
        struct entry *down = first_in_line(&to_guest), *up = first_in_line(&to_host);
        const int blocked = (up && up->due <= at) || out_length > 0;
        double wait = 1.0;
        if (down && down->due - at < wait) wait = down->due - at;
        if (up && !blocked && up->due - at < wait) wait = up->due - at;
        struct timespec limit = {.tv_nsec = wait <= 0 ? 0 : wait >= 1 ? 999999999 : (long)(wait * 1e9)};
        struct pollfd ready[2] = {{.fd = tap_fd, .events = has_room(&to_host) ? POLLIN : 0},
                                  {.fd = socket_fd, .events = (short)(POLLIN | (blocked ? POLLOUT : 0))}};
        if (ppoll(ready, 2, &limit, NULL) < 0 && errno != EINTR) die("poll");
        if (ready[0].revents & (POLLERR | POLLHUP)) exit(0);
        if (mode == TAP && ready[1].revents & (POLLERR | POLLHUP)) exit(0);
        if (ready[1].revents & (POLLIN | POLLHUP | POLLERR)) from_socket();
        if (!(ready[0].revents & POLLIN)) continue;
        const double arrival = now();
        for (int frames = 0; frames < BATCH && has_room(&to_host); frames++) {
            ssize_t length = read_tap(frame);
            if (length < 0) break;
            enter_line(&to_host, frame, (size_t)length, arrival);
        }
    }
}

static void run_plain(void) {
    const int stream = mode == QEMU;
    for (;;) {
        const int full = stream ? out_length > 0 : pending > 0;
        struct pollfd ready[2] = {{.fd = tap_fd, .events = full ? 0 : POLLIN},
                                  {.fd = socket_fd, .events = (short)(POLLIN | (full ? POLLOUT : 0))}};
        if (poll(ready, 2, -1) < 0 && errno != EINTR) die("poll");
        if (ready[0].revents & (POLLERR | POLLHUP)) exit(0); /* the namespace is being removed, and the device with it */
        if (ready[1].revents & (POLLOUT | POLLERR)) stream ? stream_flush() : datagrams_flush();
        if (ready[0].revents & POLLIN) stream ? stream_from_tap() : datagrams_from_tap();
        if (ready[1].revents & (POLLIN | POLLHUP | POLLERR)) from_socket();
    }
}

static int usage(void) {
    fprintf(stderr, "usage: bridge [--offload BYTES] [--loss SHARE] [--delay SECONDS] [--seed NUMBER] "
                    "TAP vfkit LOCAL PEER | pair LOCAL PEER | qemu PATH | tap NETNS OTHER\n");
    return 2;
}

int main(int argc, char **argv) {
    static const struct option options[] = {{"offload", required_argument, NULL, 'o'},
                                            {"loss", required_argument, NULL, 'l'},
                                            {"delay", required_argument, NULL, 'd'},
                                            {"seed", required_argument, NULL, 's'},
                                            {0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) switch (option) {
        case 'o': offload = 1, largest_to_guest = (size_t)atol(optarg); break;
        case 'l': loss = atof(optarg); break;
        case 'd': delay = atof(optarg); break;
        case 's': to_guest.dice += 2 * strtoull(optarg, NULL, 10), to_host.dice += 2 * strtoull(optarg, NULL, 10); break;
        default: return usage();
        }
    char **words = argv + optind;
    const int count = argc - optind;
    if (count < 3) return usage();
    if (count == 4 && !strcmp(words[1], "vfkit")) mode = VFKIT;
    else if (count == 4 && !strcmp(words[1], "pair")) mode = PAIR;
    else if (count == 4 && !strcmp(words[1], "tap")) mode = TAP;
    else if (count == 3 && !strcmp(words[1], "qemu")) mode = QEMU;
    else return usage();
    if (mode == PAIR && offload) largest_to_guest = MAX_FRAME;
    strip = offload && mode != PAIR;
    impaired = loss > 0 || delay > 0 || mode == TAP; /* TAP to TAP is for impairment: nothing else needs it */
    for (int i = 0; i < 32; i++) lost(&to_guest), lost(&to_host); /* seeds that are close together part ways */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    tap_fd = open_tap(words[0]);
    puts("tap");
    if (mode == TAP) {
        offload = 0;
        enter_namespace(words[2]);
        socket_fd = open_tap(words[3]);
    } else if (mode == QEMU)
        open_socket(SOCK_STREAM, NULL, words[2]);
    else
        open_socket(SOCK_DGRAM, words[2], words[3]);
    if (mode == VFKIT && send(socket_fd, "VFKT", 4, 0) < 0) die("greeting");
    puts("up");
    datagrams_prepare();
    if (impaired)
        run_impaired();
    else
        run_plain();
}
