/* What the services (serve.c) and the clients (load.c) of the benchmark share: ports, sizes, sockets. */
#ifndef BENCH_NET_H
#define BENCH_NET_H
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    SINK_PORT = 7001,   /* TCP and UDP */
    SOURCE_PORT = 7002, /* TCP and UDP */
    ECHO_PORT = 7003, /* TCP and UDP */
    DNS_PORT = 53,
    WEB_PORT = 80, /* where a policy reads the name: the request is an HTTP head of MESSAGE bytes, which is echoed */
    MESSAGE = 64, /* bytes of a request and of its response */
    DATAGRAM = 1400, /* bytes of a datagram of a flood */
    CHUNK = 256 << 10,
    EVENTS = 256,
    MAX_DESCRIPTORS = 65536,
};

static uint8_t chunk[CHUNK];

static void die(const char *what) {
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
    exit(1);
}

/* "ADDRESS", or "ADDRESS:PORT" with another port. */
static struct sockaddr_in address_of(const char *text, int port) {
    const char *colon = strchr(text, ':');
    char host[INET_ADDRSTRLEN] = {0};
    if (colon) port = atoi(colon + 1);
    memcpy(host, text, colon && colon - text < INET_ADDRSTRLEN ? (size_t)(colon - text) : strnlen(text, sizeof host - 1));
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) {
        errno = EINVAL;
        die(text);
    }
    return address;
}

static int make_socket(int type, int flags) {
    int fd = socket(AF_INET, type | SOCK_CLOEXEC | flags, 0);
    if (fd < 0) die("socket");
    if (fd >= MAX_DESCRIPTORS) {
        errno = EMFILE;
        die("socket");
    }
    if (type == SOCK_STREAM) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        /* The same everywhere, whatever this machine's default is; accepted connections take it from their listener. */
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", strlen("cubic"));
    }
    return fd;
}

static void watch(int poller, int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0) die("epoll_ctl");
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The bytes the sinks have received so far, shared between the services and the client, past the network under test. */
struct counters {
    _Atomic uint64_t tcp, udp;
};

static struct counters *map_counters(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct counters)) < 0) die(path);
    void *mapped = mmap(NULL, sizeof(struct counters), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) die(path);
    close(fd);
    return mapped;
}

#endif
