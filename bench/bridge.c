/* Carries Ethernet frames between a TAP device of this network namespace and a socket, as a virtual machine monitor would.
 *
 *   bridge TAP vfkit LOCAL PEER   unix datagrams, one frame each: bind LOCAL, connect to PEER, send "VFKT" first
 *   bridge TAP pair LOCAL PEER    the same without the greeting: two of these back to back are the ceiling of the measurement
 *   bridge TAP qemu PATH          unix stream, each frame behind its length (4 bytes, big-endian)
 *
 * Prints "tap" when the device exists and "up" when the socket is connected. Never drops on the socket's side: while the
 * socket is full the TAP is not read, and the kernel's queue of the TAP does what the queue of a network card does.
 * Ends when the other side goes (exit status 0), on SIGTERM, and with the process that started it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MIN_FRAME = 14,
    MAX_FRAME = 65562,     /* 14 bytes of Ethernet, a 65,535-byte packet and what virtio may add */
    BATCH = 64,            /* frames moved in one direction before the other gets its turn */
    STREAM_BUFFER = 1 << 20,
    STREAM_BATCH = 256 << 10, /* bytes gathered into one write to the stream */
    SOCKET_BUFFER = 7 << 20,
    CONNECT_SECONDS = 20,
};

static int tap_fd, socket_fd;

static void die(const char *what) {
    fprintf(stderr, "bridge: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void finish_if_peer_is_gone(const char *what) {
    if (errno == ECONNREFUSED || errno == ECONNRESET || errno == EPIPE || errno == ENOTCONN || errno == ENOENT) exit(0);
    die(what);
}

static int would_block(void) { return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS || errno == EINTR; }

static void open_tap(const char *name) {
    struct ifreq request = {0};
    tap_fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (tap_fd < 0) die("/dev/net/tun");
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(tap_fd, TUNSETIFF, &request) < 0) die(name);
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

static void write_tap(const uint8_t *frame, size_t length) {
    /* The kernel refuses frames that are no frames (EINVAL) and takes none while the device is down (EIO): lost, as on a wire. */
    if (write(tap_fd, frame, length) < 0 && errno != EINVAL && errno != EIO && !would_block()) die("write to the TAP");
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
        ssize_t length = read(tap_fd, to_socket[pending], MAX_FRAME);
        if (length < 0) {
            if (would_block()) break;
            die("read from the TAP");
        }
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
        if (incoming[i].msg_len >= MIN_FRAME) write_tap(to_tap[i], incoming[i].msg_len);
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

static void stream_from_tap(void) {
    for (int frames = 0; frames < BATCH && out_length < STREAM_BATCH; frames++) {
        ssize_t length = read(tap_fd, stream_out + out_length + 4, MAX_FRAME);
        if (length < 0) {
            if (would_block()) break;
            die("read from the TAP");
        }
        uint32_t prefix = htonl((uint32_t)length);
        memcpy(stream_out + out_length, &prefix, 4);
        out_length += 4 + (size_t)length;
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
        write_tap(stream_in + at + 4, length);
        at += 4 + length;
    }
    memmove(stream_in, stream_in + at, in_length - at);
    in_length -= at;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: bridge TAP vfkit LOCAL PEER | bridge TAP pair LOCAL PEER | bridge TAP qemu PATH\n");
        return 2;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    const int stream = !strcmp(argv[2], "qemu"), greet = !strcmp(argv[2], "vfkit");
    if (!stream && argc < 5) return 2;
    open_tap(argv[1]);
    puts("tap");
    if (stream)
        open_socket(SOCK_STREAM, NULL, argv[3]);
    else
        open_socket(SOCK_DGRAM, argv[3], argv[4]);
    if (greet && send(socket_fd, "VFKT", 4, 0) < 0) die("greeting");
    puts("up");
    datagrams_prepare();
    for (;;) {
        const int full = stream ? out_length > 0 : pending > 0;
        struct pollfd ready[2] = {{.fd = tap_fd, .events = full ? 0 : POLLIN},
                                  {.fd = socket_fd, .events = (short)(POLLIN | (full ? POLLOUT : 0))}};
        if (poll(ready, 2, -1) < 0 && errno != EINTR) die("poll");
        if (ready[0].revents & (POLLERR | POLLHUP)) return 0; /* the namespace is being removed, and the device with it */
        if (ready[1].revents & (POLLOUT | POLLERR)) stream ? stream_flush() : datagrams_flush();
        if (ready[0].revents & POLLIN) stream ? stream_from_tap() : datagrams_from_tap();
        if (ready[1].revents & (POLLIN | POLLHUP | POLLERR)) stream ? stream_from_socket() : datagrams_from_socket();
    }
}
