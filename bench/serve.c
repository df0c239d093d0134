/* The services the benchmark talks to: serve ADDRESS COUNTERS [ECHO]
 *
 *   7001      TCP and UDP: takes bytes
 *   7002/tcp  sends without end
 *   7002/udp  sends datagrams for as many seconds as the question, a double, says
 *   7003      TCP and UDP echo, at port ECHO where that is given
 *   80/tcp    the same
 *   53/udp    DNS: one A record for each name, no records of other types
 *
 * COUNTERS is a file: what 7001 has received in all, for a client on the same machine that maps it too.
 * Each in a process of its own. Prints "ready", ends when standard input ends.
 */
#include "net.h"

#include <sys/wait.h>

static int listen_on(const char *text, int port, int type) {
    struct sockaddr_in address = address_of(text, port);
    int fd = make_socket(type, SOCK_NONBLOCK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (type == SOCK_STREAM && listen(fd, 4096) < 0) die("listen");
    return fd;
}

static struct counters *counters;

/* Each serves one ready connection and returns 0 when it is over. */
static int serve_sink(int fd) {
    for (int turns = 0; turns < 8; turns++) {
        ssize_t count = recv(fd, chunk, sizeof chunk, 0);
        if (count < 0) return errno == EAGAIN;
        if (count == 0) return 0;
        atomic_fetch_add_explicit(&counters->tcp, (uint64_t)count, memory_order_relaxed);
    }
    return 1;
}

static int serve_source(int fd) {
    return send(fd, chunk, sizeof chunk, MSG_NOSIGNAL) >= 0 || errno == EAGAIN;
}

static int serve_echo(int fd) {
    ssize_t count = recv(fd, chunk, sizeof chunk, 0);
    if (count < 0) return errno == EAGAIN;
    return count > 0 && send(fd, chunk, (size_t)count, MSG_NOSIGNAL) == count;
}

static void serve_streams(int listener, int (*serve)(int), uint32_t events) {
    int poller = epoll_create1(EPOLL_CLOEXEC);
    watch(poller, EPOLL_CTL_ADD, listener, EPOLLIN);
    for (;;) {
        struct epoll_event ready[EVENTS];
        int count = epoll_wait(poller, ready, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd != listener) {
                if (!serve(fd)) close(fd);
                continue;
            }
            int accepted;
            while ((accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                if (accepted >= MAX_DESCRIPTORS) {
                    close(accepted);
                    continue;
                }
                setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
                watch(poller, EPOLL_CTL_ADD, accepted, events);
            }
        }
    }
}

/* The end of the first question of a message, or 0. */
static size_t question_end(const uint8_t *message, size_t length) {
    size_t at = 12;
    while (at < length && message[at] != 0) at += 1 + (size_t)message[at];
    return at + 5 <= length ? at + 5 : 0;
}

/* Turns a query into its answer: one A record for type A, no records otherwise. */
static size_t dns_answer(uint8_t *message, size_t length) {
    static const uint8_t record_a[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 77};
    size_t end = length >= 12 ? question_end(message, length) : 0;
    if (!end) return 0;
    int is_a = message[end - 4] == 0 && message[end - 3] == 1;
    message[2] = (uint8_t)(0x84 | (message[2] & 1)); /* QR, AA, RD as asked */
    message[3] = 0x80;                               /* RA, NOERROR */
    memset(message + 4, 0, 8);
    message[5] = 1;
    message[7] = (uint8_t)is_a;
    if (!is_a) return end;
    memcpy(message + end, record_a, sizeof record_a);
    return end + sizeof record_a;
}

static void serve_datagrams(int fd, int dns) {
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        poll(&ready, 1, -1);
        for (int turns = 0; turns < EVENTS; turns++) {
            struct sockaddr_in peer;
            socklen_t peer_length = sizeof peer;
            ssize_t count = recvfrom(fd, chunk, sizeof chunk - 64, 0, (struct sockaddr *)&peer, &peer_length);
            if (count < 0) break;
            size_t length = dns ? dns_answer(chunk, (size_t)count) : (size_t)count;
            if (dns && !length) continue;
            sendto(fd, chunk, length, 0, (struct sockaddr *)&peer, peer_length);
        }
    }
}

static void serve_datagram_sink(int fd) {
    for (;;) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        poll(&ready, 1, -1);
        for (ssize_t count; (count = recv(fd, chunk, sizeof chunk, 0)) >= 0;)
            atomic_fetch_add_explicit(&counters->udp, (uint64_t)count, memory_order_relaxed);
    }
}

static void serve_datagram_source(int fd) {
    for (;;) {
        struct sockaddr_in peer;
        socklen_t peer_length = sizeof peer;
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        double seconds;
        poll(&ready, 1, -1);
        ssize_t count = recvfrom(fd, &seconds, sizeof seconds, 0, (struct sockaddr *)&peer, &peer_length);
        if (count != sizeof seconds || !(seconds > 0 && seconds <= 60)) continue;
        for (const double end = now() + seconds; now() < end;)
            sendto(fd, chunk, DATAGRAM, 0, (struct sockaddr *)&peer, peer_length);
    }
}

int main(int argc, char **argv) {
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: serve ADDRESS COUNTERS [ECHO]\n");
        return 2;
    }
    const char *text = argv[1];
    const int echo_port = argc > 3 ? atoi(argv[3]) : ECHO_PORT;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    setpgid(0, 0);
    counters = map_counters(argv[2]);
    const int sink = listen_on(text, SINK_PORT, SOCK_STREAM), source = listen_on(text, SOURCE_PORT, SOCK_STREAM),
              echo = listen_on(text, echo_port, SOCK_STREAM), udp_echo = listen_on(text, echo_port, SOCK_DGRAM),
              dns = listen_on(text, DNS_PORT, SOCK_DGRAM), web = listen_on(text, WEB_PORT, SOCK_STREAM),
              udp_sink = listen_on(text, SINK_PORT, SOCK_DGRAM), udp_source = listen_on(text, SOURCE_PORT, SOCK_DGRAM);
    for (int service = 0; service < 8; service++) {
        pid_t child = fork();
        if (child < 0) die("fork");
        if (child > 0) continue;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        switch (service) {
        case 0: serve_streams(sink, serve_sink, EPOLLIN); break;
        case 1: serve_streams(source, serve_source, EPOLLOUT); break;
        case 2: serve_streams(echo, serve_echo, EPOLLIN); break;
        case 3: serve_datagrams(udp_echo, 0); break;
        case 4: serve_datagrams(dns, 1); break;
        case 5: serve_streams(web, serve_echo, EPOLLIN); break;
        case 6: serve_datagram_sink(udp_sink); break;
        case 7: serve_datagram_source(udp_source); break;
        }
    }
    puts("ready");
    while (read(0, chunk, sizeof chunk) > 0) {}
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM); /* the children: this process leads its own group */
    while (wait(NULL) > 0) {}
}
