/* The clients that measure, against the services of serve.c. Each ends by itself within its seconds plus GRACE and prints
 * one JSON object.
 *
 *   load tcp-send ADDRESS SECONDS FLOWS COUNTERS bytes the server's application has received, by its own count
 *   load tcp-recv ADDRESS SECONDS FLOWS          bytes read from a server that never stops
 *   load rr ADDRESS SECONDS                      request and response on one connection, one at a time
 *   load crr ADDRESS SECONDS CLIENTS             connect, request, response, close; CLIENTS at a time
 *   load web ADDRESS SECONDS CLIENTS NAME        the same on port 80; the request is an HTTP head with that Host
 *   load udp-rr ADDRESS SECONDS                  one datagram each way at a time
 *   load udp-new-flow ADDRESS SECONDS LIMIT      the same, each from a new port; at most LIMIT
 *   load udp-flood-up ADDRESS SECONDS 1 COUNTERS datagrams as fast as they can be sent; the bytes that arrived, by the
 *                                                server's count
 *   load udp-flood-down ADDRESS SECONDS          the same towards us
 *   load dns ADDRESS SECONDS IN_FLIGHT NAME      A questions; NAME "-" asks a new name each time
 *   load idle ADDRESS COUNT                      COUNT connections, one echo each; prints "open", holds them until a line comes,
 *                                                closes them, prints "closed", waits for the end of standard input
 *   load idle-udp ADDRESS COUNT                  the same with COUNT UDP sockets
 *   load hang ADDRESS SECONDS COUNT SILENT       seconds until one TCP echo came back while COUNT connections to the address
 *                                                SILENT, where nobody answers, are being tried; SECONDS and an error if none did
 *   load first-echo ADDRESS SECONDS              tries until one TCP echo came back
 *
 * Times are of CLOCK_MONOTONIC, latencies in microseconds. An operation with no answer is an error after ANSWER_SECONDS.
 */
#include "net.h"

enum {
    MAX_SAMPLES = 1 << 22,
    GRACE = 20, /* seconds after the end of a client's time until it is killed */
};
static const double ANSWER_SECONDS = 5.0, UDP_ANSWER_SECONDS = 1.0;

static void receive_timeout(int fd, double seconds) {
    struct timeval limit = {.tv_sec = (time_t)seconds, .tv_usec = (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6)};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

/* ---- samples ---- */

static float *samples;
static uint64_t operations, errors;

static void record(double seconds) {
    samples[operations++ % MAX_SAMPLES] = (float)(seconds * 1e6);
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_operations(uint64_t count_in_time, double seconds) {
    size_t count = operations < MAX_SAMPLES ? operations : MAX_SAMPLES;
    qsort(samples, count, sizeof *samples, by_value);
    printf("{\"operations\": %llu, \"errors\": %llu, \"seconds\": %.6f", (unsigned long long)count_in_time,
           (unsigned long long)errors, seconds);
    if (count)
        printf(", \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f", samples[count / 2], samples[count * 99 / 100],
               samples[count - 1]);
    puts("}");
}

/* ---- measurements ---- */

static int connect_blocking(struct sockaddr_in address, double seconds) {
    int fd = make_socket(SOCK_STREAM, 0);
    receive_timeout(fd, seconds);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    return fd;
}

/* "moved": with what came before the clock ran. */
static uint64_t bytes_before;

static void print_bytes(uint64_t bytes, double seconds) {
    printf("{\"bytes\": %llu, \"moved\": %llu, \"errors\": %llu, \"seconds\": %.6f}\n", (unsigned long long)bytes,
           (unsigned long long)(bytes + bytes_before), (unsigned long long)errors, seconds);
}

/* No word to the other side that there is no more: what is still on its way is thrown away with a reset. */
static void drop(int fd) {
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
    close(fd);
}

static int take(int fd) {
    ssize_t length = recv(fd, chunk, sizeof chunk, 0);
    return length > 0 ? (int)length : length < 0 && errno == EAGAIN ? 0 : -1;
}

/* Opens connections at the same time, and waits until all are there, so that the clock runs over transfers only. What
 * arrives meanwhile does not count. A connection that is not there after ANSWER_SECONDS is an error. */
static int *open_flows(struct sockaddr_in address, int flows, int poller) {
    int *fds = calloc((size_t)flows, sizeof *fds), *connected = calloc(MAX_DESCRIPTORS, sizeof *connected), missing = flows;
    for (int i = 0; i < flows; i++) {
        fds[i] = make_socket(SOCK_STREAM, SOCK_NONBLOCK);
        if (connect(fds[i], (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) die("connect");
        watch(poller, EPOLL_CTL_ADD, fds[i], EPOLLOUT);
    }
    for (const double end = now() + ANSWER_SECONDS; missing && now() < end;) {
        struct epoll_event ready[EVENTS];
        int count = epoll_wait(poller, ready, EVENTS, 20);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd, failed = 0;
            socklen_t length = sizeof failed;
            if (connected[fd]) {
                const int length = take(fd);
                if (length > 0) bytes_before += (uint64_t)length;
                continue;
            }
            if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failed, &length) < 0) die("getsockopt");
            if (failed) {
                errno = failed;
                die("connect");
            }
            connected[fd] = 1;
            missing--;
            watch(poller, EPOLL_CTL_MOD, fd, EPOLLIN);
        }
    }
    for (int i = 0; i < flows; i++) {
        if (connected[fds[i]]) continue;
        watch(poller, EPOLL_CTL_DEL, fds[i], 0);
        errors++;
    }
    free(connected);
    if (missing == flows) {
        errno = ETIMEDOUT;
        die("connect");
    }
    return fds;
}

/* Bytes that reached the server's application by the end of the time; what is in buffers on the way does not count. */
static void tcp_send(struct sockaddr_in address, double seconds, int flows, const char *counters_path) {
    _Atomic uint64_t *counter = &map_counters(counters_path)->tcp;
    int poller = epoll_create1(EPOLL_CLOEXEC);
    int *fds = open_flows(address, flows, poller);
    const uint64_t before = atomic_load(counter);
    const double start = now();
    for (int i = 0; i < flows; i++) {
        struct epoll_event event = {.events = EPOLLOUT, .data.fd = fds[i]};
        epoll_ctl(poller, EPOLL_CTL_MOD, fds[i], &event); /* no longer watched: it never connected */
    }
    while (now() < start + seconds) {
        struct epoll_event ready[EVENTS];
        int count = epoll_wait(poller, ready, EVENTS, 20);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (send(fd, chunk, sizeof chunk, MSG_NOSIGNAL) >= 0 || errno == EAGAIN) continue;
            errors++;
            watch(poller, EPOLL_CTL_DEL, fd, 0);
        }
    }
    print_bytes(atomic_load(counter) - before, now() - start);
    for (int i = 0; i < flows; i++) drop(fds[i]);
}

static void tcp_recv(struct sockaddr_in address, double seconds, int flows) {
    int poller = epoll_create1(EPOLL_CLOEXEC);
    int *fds = open_flows(address, flows, poller);
    const double start = now();
    uint64_t bytes = 0;
    while (now() < start + seconds) {
        struct epoll_event ready[EVENTS];
        int count = epoll_wait(poller, ready, EVENTS, 20);
        for (int i = 0; i < count; i++) {
            int length = take(ready[i].data.fd);
            if (length >= 0) {
                bytes += (uint64_t)length;
                continue;
            }
            errors++;
            watch(poller, EPOLL_CTL_DEL, ready[i].data.fd, 0);
        }
    }
    print_bytes(bytes, now() - start);
    for (int i = 0; i < flows; i++) drop(fds[i]);
}

static int echo_once(int fd) {
    size_t got = 0;
    if (send(fd, chunk, MESSAGE, MSG_NOSIGNAL) != MESSAGE) return 0;
    while (got < MESSAGE) {
        ssize_t count = recv(fd, chunk, MESSAGE, 0);
        if (count <= 0) return 0;
        got += (size_t)count;
    }
    return 1;
}

static void request_response(struct sockaddr_in address, double seconds) {
    int fd = connect_blocking(address, ANSWER_SECONDS);
    const double start = now();
    for (double at = start; at < start + seconds;) {
        if (!echo_once(fd)) die("echo");
        double done = now();
        record(done - at);
        at = done;
    }
    print_operations(operations, now() - start);
}

struct attempt {
    double started;
    size_t got;
    int sent;
};
static struct attempt attempts[MAX_DESCRIPTORS];

static int begin_attempt(int poller, struct sockaddr_in address) {
    int fd = make_socket(SOCK_STREAM, SOCK_NONBLOCK);
    attempts[fd] = (struct attempt){.started = now()};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EINPROGRESS) die("connect");
    watch(poller, EPOLL_CTL_ADD, fd, EPOLLOUT);
    return fd;
}

/* 1 when the response is whole, 0 when there is more to come, -1 when it failed. */
static int continue_attempt(int poller, int fd) {
    struct attempt *attempt = &attempts[fd];
    if (!attempt->sent) {
        if (send(fd, chunk, MESSAGE, MSG_NOSIGNAL) != MESSAGE) return -1;
        attempt->sent = 1;
        watch(poller, EPOLL_CTL_MOD, fd, EPOLLIN);
        return 0;
    }
    ssize_t count = recv(fd, chunk + MESSAGE, MESSAGE, 0); /* the request stays as it is */
    if (count <= 0) return count < 0 && errno == EAGAIN ? 0 : -1;
    attempt->got += (size_t)count;
    return attempt->got >= MESSAGE;
}

/* Closes a client's connection and opens its next; 0 when the time is over. */
static int next_attempt(int poller, struct sockaddr_in address, int *fds, int *slot_of, int slot, double end) {
    close(fds[slot]);
    fds[slot] = -1;
    if (now() >= end) return 0;
    slot_of[fds[slot] = begin_attempt(poller, address)] = slot;
    return 1;
}

/* What is under way at the end is waited for and counts as a latency, though not in the rate: a few that hang while the
 * others go round would be missing from the percentiles otherwise. */
static void connect_request_response(struct sockaddr_in address, double seconds, int clients) {
    int poller = epoll_create1(EPOLL_CLOEXEC), open = clients;
    int *fds = calloc((size_t)clients, sizeof *fds), *slot_of = calloc(MAX_DESCRIPTORS, sizeof *slot_of);
    const double start = now(), end = start + seconds;
    for (int i = 0; i < clients; i++) slot_of[fds[i] = begin_attempt(poller, address)] = i;
    double checked = start;
    uint64_t in_time = 0;
    while (open) {
        struct epoll_event ready[EVENTS];
        int count = epoll_wait(poller, ready, EVENTS, 100);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd, outcome = continue_attempt(poller, fd);
            if (!outcome) continue;
            if (outcome > 0)
                record(now() - attempts[fd].started);
            else
                errors++;
            in_time += outcome > 0 && now() < end;
            open -= !next_attempt(poller, address, fds, slot_of, slot_of[fd], end);
        }
        if (now() < checked + 0.2) continue;
        checked = now();
        for (int slot = 0; slot < clients; slot++) {
            if (fds[slot] < 0 || checked - attempts[fds[slot]].started < ANSWER_SECONDS) continue;
            errors++;
            record(ANSWER_SECONDS); /* at least */
            open -= !next_attempt(poller, address, fds, slot_of, slot, end);
        }
    }
    print_operations(in_time, seconds);
}

static int connected_datagrams(struct sockaddr_in address, double timeout) {
    int fd = make_socket(SOCK_DGRAM, 0);
    receive_timeout(fd, timeout);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    return fd;
}

static void udp_request_response(struct sockaddr_in address, double seconds, uint64_t new_flows) {
    const double start = now();
    int fd = -1;
    while (now() < start + seconds && (!new_flows || operations + errors < new_flows)) {
        const double at = now();
        if (fd < 0) fd = connected_datagrams(address, UDP_ANSWER_SECONDS);
        uint64_t number = operations + errors, answer;
        ssize_t count = -1;
        memcpy(chunk, &number, sizeof number);
        if (send(fd, chunk, MESSAGE, 0) == MESSAGE) do {
                count = recv(fd, chunk, sizeof chunk, 0);
                memcpy(&answer, chunk, sizeof answer);
            } while (count == MESSAGE && answer != number); /* the late answer of one that was given up */
        if (count == MESSAGE)
            record(now() - at);
        else
            errors++;
        if (new_flows) {
            close(fd);
            fd = -1;
        }
    }
    print_operations(operations, now() - start);
}

static void udp_flood_up(struct sockaddr_in address, double seconds, const char *counters_path) {
    _Atomic uint64_t *counter = &map_counters(counters_path)->udp;
    const int fd = connected_datagrams(address, UDP_ANSWER_SECONDS);
    const uint64_t before = atomic_load(counter);
    const double start = now();
    while (now() < start + seconds) send(fd, chunk, DATAGRAM, 0); /* full somewhere: lost, as the rest of a flood */
    print_bytes(atomic_load(counter) - before, now() - start);
}

static void udp_flood_down(struct sockaddr_in address, double seconds) {
    const int fd = connected_datagrams(address, 0.1);
    const double start = now();
    uint64_t bytes = 0;
    send(fd, &seconds, sizeof seconds, 0);
    while (now() < start + seconds) {
        ssize_t count = recv(fd, chunk, sizeof chunk, 0);
        if (count > 0) bytes += (uint64_t)count;
    }
    print_bytes(bytes, now() - start);
}

static size_t dns_query(uint8_t *message, int id, const char *name, uint64_t serial) {
    uint8_t *at = message + 12;
    char unique[64];
    memset(message, 0, 12);
    message[0] = (uint8_t)(id >> 8);
    message[1] = (uint8_t)id;
    message[2] = 1; /* RD */
    message[5] = 1;
    if (!strcmp(name, "-")) {
        snprintf(unique, sizeof unique, "q%llu-%d.bench.test", (unsigned long long)serial, (int)getpid());
        name = unique;
    }
    while (*name) {
        size_t label = strcspn(name, ".");
        *at++ = (uint8_t)label;
        memcpy(at, name, label);
        at += label;
        name += label + (name[label] == '.');
    }
    memcpy(at, "\0\0\1\0\1", 5); /* the root, type A, class IN */
    return (size_t)(at + 5 - message);
}

/* The id says which of the questions in flight an answer is for; each use of a place takes a new id. */
static void dns(struct sockaddr_in address, double seconds, int in_flight, const char *name) {
    double *started = calloc((size_t)in_flight, sizeof *started);
    int *ids = calloc((size_t)in_flight, sizeof *ids);
    int fd = make_socket(SOCK_DGRAM, SOCK_NONBLOCK), next_id = 0;
    uint64_t serial = 0;
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    const double start = now();
    double checked = start;
    for (int i = 0; i < in_flight; i++) ids[i] = -1;
    for (;;) {
        const double at = now();
        if (at >= start + seconds) break;
        const int overdue = at >= checked + 0.1;
        if (overdue) checked = at;
        for (int i = 0; i < in_flight; i++) {
            if (ids[i] >= 0 && overdue && at - started[i] > UDP_ANSWER_SECONDS) {
                errors++;
                ids[i] = -1;
            }
            if (ids[i] >= 0) continue;
            uint8_t query[300];
            /* Places are 1024 ids wide at most, so that an id names its place. */
            ids[i] = (next_id++ % (65536 / in_flight)) * in_flight + i;
            size_t length = dns_query(query, ids[i], name, serial++);
            started[i] = now();
            if (send(fd, query, length, 0) < 0) ids[i] = -1, errors++;
        }
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        if (poll(&ready, 1, 100) <= 0) continue;
        for (;;) {
            ssize_t count = recv(fd, chunk, sizeof chunk, 0);
            if (count < 12) break;
            int id = chunk[0] << 8 | chunk[1], place = id % in_flight;
            if (ids[place] != id) continue; /* given up before */
            ids[place] = -1;
            if ((chunk[3] & 15) == 0 && chunk[7] == 1)
                record(now() - started[place]);
            else
                errors++;
        }
    }
    print_operations(operations, now() - start);
}

static void idle(struct sockaddr_in address, int count, int udp) {
    int *fds = calloc((size_t)count, sizeof *fds);
    for (int i = 0; i < count; i++) {
        fds[i] = udp ? connected_datagrams(address, UDP_ANSWER_SECONDS) : connect_blocking(address, ANSWER_SECONDS);
        if (!echo_once(fds[i])) die("echo");
    }
    puts("open");
    if (read(0, chunk, 1) <= 0) return;
    for (int i = 0; i < count; i++) close(fds[i]);
    puts("closed");
    while (read(0, chunk, sizeof chunk) > 0) {}
}

static void hang(struct sockaddr_in address, double seconds, int count, struct sockaddr_in silent) {
    for (int i = 0; i < count; i++) {
        int fd = make_socket(SOCK_STREAM, SOCK_NONBLOCK);
        if (connect(fd, (struct sockaddr *)&silent, sizeof silent) < 0 && errno != EINPROGRESS) die("connect");
    }
    nanosleep(&(struct timespec){.tv_nsec = 200 * 1000 * 1000}, NULL);
    const double start = now();
    const int fd = make_socket(SOCK_STREAM, 0);
    receive_timeout(fd, seconds);
    const int reached = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && echo_once(fd);
    printf("{\"seconds\": %.6f, \"errors\": %d}\n", reached ? now() - start : seconds, !reached);
}

static void first_echo(struct sockaddr_in address, double seconds) {
    const double start = now();
    while (now() < start + seconds) {
        int fd = make_socket(SOCK_STREAM, 0), reached;
        /* Shorter than the kernel's one second between SYNs, long enough for a slow stack's first connection. */
        receive_timeout(fd, 0.25);
        reached = connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && echo_once(fd);
        close(fd);
        if (reached) {
            printf("{\"seconds\": %.6f}\n", now() - start);
            return;
        }
        nanosleep(&(struct timespec){.tv_nsec = 500 * 1000}, NULL);
    }
    errno = ETIMEDOUT;
    die("first echo");
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: load COMMAND ADDRESS ...\n");
        return 2;
    }
    const char *command = argv[1], *address = argv[2];
    const double seconds = argc > 3 ? atof(argv[3]) : 0;
    const int number = argc > 4 ? atoi(argv[4]) : 1;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (number < 1) return 2;
    samples = malloc(MAX_SAMPLES * sizeof *samples);
    if ((!strcmp(command, "idle") || !strcmp(command, "idle-udp")) && argc > 3) {
        idle(address_of(address, ECHO_PORT), atoi(argv[3]), !strcmp(command, "idle-udp"));
        return 0;
    }
    alarm((unsigned)seconds + GRACE);
    if (!strcmp(command, "tcp-send") && argc > 5) tcp_send(address_of(address, SINK_PORT), seconds, number, argv[5]);
    else if (!strcmp(command, "tcp-recv")) tcp_recv(address_of(address, SOURCE_PORT), seconds, number);
    else if (!strcmp(command, "rr")) request_response(address_of(address, ECHO_PORT), seconds);
    else if (!strcmp(command, "crr")) connect_request_response(address_of(address, ECHO_PORT), seconds, number);
    else if (!strcmp(command, "web") && argc > 5) {
        /* A whole HTTP head that says the name, filled up to the size of a message. */
        char head[MESSAGE + 1];
        int length = snprintf(head, sizeof head, "GET / HTTP/1.1\r\nHost: %s\r\nX: ", argv[5]);
        if (length + 5 > MESSAGE) return 2;
        memset(chunk, 'x', MESSAGE);
        memcpy(chunk, head, (size_t)length);
        memcpy(chunk + MESSAGE - 4, "\r\n\r\n", 4);
        connect_request_response(address_of(address, WEB_PORT), seconds, number);
    } else if (!strcmp(command, "udp-rr")) udp_request_response(address_of(address, ECHO_PORT), seconds, 0);
    else if (!strcmp(command, "udp-new-flow")) udp_request_response(address_of(address, ECHO_PORT), seconds, (uint64_t)number);
    else if (!strcmp(command, "udp-flood-up") && argc > 5) udp_flood_up(address_of(address, SINK_PORT), seconds, argv[5]);
    else if (!strcmp(command, "udp-flood-down")) udp_flood_down(address_of(address, SOURCE_PORT), seconds);
    else if (!strcmp(command, "hang") && argc > 5)
        hang(address_of(address, ECHO_PORT), seconds, number, address_of(argv[5], ECHO_PORT));
    else if (!strcmp(command, "dns") && argc > 5) dns(address_of(address, DNS_PORT), seconds, number, argv[5]);
    else if (!strcmp(command, "first-echo")) first_echo(address_of(address, ECHO_PORT), seconds);
    else return 2;
    return 0;
}
