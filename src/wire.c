#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "sys.h"

struct header {
    uint32_t type;
    uint32_t in_memfd;
    int64_t id;
};

void bough_wbuf_free(struct bough_wbuf *buf)
{
    free(buf->data);
    *buf = (struct bough_wbuf){0};
}

static void put(struct bough_wbuf *buf, const void *data, size_t size)
{
    if (buf->failed)
        return;
    if (buf->size + size > buf->room) {
        size_t room = buf->room ? buf->room : 512;
        while (room < buf->size + size)
            room *= 2;
        uint8_t *grown = realloc(buf->data, room);
        if (!grown) {
            buf->failed = true;
            return;
        }
        buf->data = grown;
        buf->room = room;
    }
    if (size)
        memcpy(buf->data + buf->size, data, size);
    buf->size += size;
}

void bough_put_i64(struct bough_wbuf *buf, int64_t value)
{
    put(buf, &value, sizeof value);
}

void bough_put_f64(struct bough_wbuf *buf, double value)
{
    put(buf, &value, sizeof value);
}

void bough_put_bytes(struct bough_wbuf *buf, const void *data, size_t size)
{
    bough_put_i64(buf, (int64_t)size);
    put(buf, data, size);
    put(buf, "", 1);
}

void bough_put_str(struct bough_wbuf *buf, const char *text)
{
    if (text)
        bough_put_bytes(buf, text, strlen(text));
    else
        bough_put_i64(buf, -1);
}

void bough_put_strv(struct bough_wbuf *buf, char *const *texts)
{
    int64_t count = 0;
    while (texts && texts[count])
        count++;
    bough_put_i64(buf, count);
    for (int64_t i = 0; i < count; i++)
        bough_put_str(buf, texts[i]);
}

void bough_strv_free(char **texts)
{
    for (char **t = texts; t && *t; t++)
        free(*t);
    free(texts);
}

void bough_put_err(struct bough_wbuf *buf, const struct bough_err *err)
{
    bough_put_i64(buf, err->kind);
    bough_put_i64(buf, err->sys);
    bough_put_str(buf, err->msg);
}

static const void *get(struct bough_rbuf *buf, size_t size)
{
    if (buf->failed || (size_t)(buf->end - buf->at) < size) {
        buf->failed = true;
        return NULL;
    }
    const void *data = buf->at;
    buf->at += size;
    return data;
}

int64_t bough_get_i64(struct bough_rbuf *buf)
{
    int64_t value = 0;
    const void *data = get(buf, sizeof value);
    if (data)
        memcpy(&value, data, sizeof value);
    return value;
}

double bough_get_f64(struct bough_rbuf *buf)
{
    double value = 0;
    const void *data = get(buf, sizeof value);
    if (data)
        memcpy(&value, data, sizeof value);
    return value;
}

const char *bough_get_str(struct bough_rbuf *buf)
{
    int64_t size = bough_get_i64(buf);
    if (buf->failed || size == -1)
        return NULL;
    if (size < 0 || size > BOUGH_WIRE_PAYLOAD_MAX) {
        buf->failed = true;
        return NULL;
    }
    const char *text = get(buf, (size_t)size + 1);
    if (text && text[size] != '\0') {
        buf->failed = true;
        return NULL;
    }
    return text;
}

char **bough_get_strv(struct bough_rbuf *buf)
{
    int64_t count = bough_get_i64(buf);
    if (buf->failed || count < 0 || count > BOUGH_WIRE_PAYLOAD_MAX / 9) {
        buf->failed = true;
        return NULL;
    }
    char **texts = calloc((size_t)count + 1, sizeof *texts);
    if (!texts) {
        buf->failed = true;
        return NULL;
    }
    for (int64_t i = 0; i < count; i++) {
        texts[i] = (char *)(uintptr_t)bough_get_str(buf);
        if (!texts[i]) {
            buf->failed = true;
            free(texts);
            return NULL;
        }
    }
    return texts;
}

void bough_get_err(struct bough_rbuf *buf, struct bough_err *err)
{
    int64_t kind = bough_get_i64(buf);
    int64_t sys = bough_get_i64(buf);
    const char *text = bough_get_str(buf);
    if (buf->failed || !text) {
        bough_err_set(err, BOUGH_ERR_protocol, "keeper: an error report could not be read");
        return;
    }
    bough_err_set(
        err, kind >= 0 && kind < BOUGH_ERR_KIND_COUNT ? (enum bough_err_kind)kind : BOUGH_ERR_io,
        "%s", text);
    err->sys = (int)sys;
}

void bough_msg_clear(struct bough_message *msg)
{
    for (int i = 0; i < msg->fd_count; i++)
        bough_fd_close(&msg->fds[i]);
    msg->fd_count = 0;
    free(msg->data);
    msg->data = NULL;
}

static int payload_memfd(const struct bough_wbuf *body, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = memfd_create("bough-message", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return bough_err_sys(err, errno, "message");
    size_t done = 0;
    while (done < body->size) {
        ssize_t n = BOUGH_RETRY(write(fd, body->data + done, body->size - done));
        if (n <= 0)
            return bough_err_sys(err, errno, "message");
        done += (size_t)n;
    }
    /* The receiver maps nothing, but a size that may change under it is nobody's business. */
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    return bough_steal_fd(&fd);
}

int bough_send(int sock, enum bough_msg type, int64_t id, const struct bough_wbuf *body,
               const int *fds, int fd_count, struct bough_err *err)
{
    if (body && body->failed)
        return bough_err_sys(err, ENOMEM, "message");
    if (body && body->size > BOUGH_WIRE_PAYLOAD_MAX)
        return bough_err_sys(err, E2BIG, "message");
    struct header header = {.type = (uint32_t)type, .id = id};
    int all[BOUGH_WIRE_FDS];
    int count = 0;
    BOUGH_CLEANUP_FD int memfd = -1;
    if (body && body->size > BOUGH_WIRE_INLINE) {
        memfd = payload_memfd(body, err);
        if (memfd < 0)
            return -1;
        header.in_memfd = 1;
        all[count++] = memfd;
    }
    for (int i = 0; i < fd_count && count < BOUGH_WIRE_FDS; i++)
        all[count++] = fds[i];

    struct iovec iov[2] = {
        {.iov_base = &header, .iov_len = sizeof header},
        {.iov_base = body ? body->data : NULL,
         .iov_len = body && !header.in_memfd ? body->size : 0},
    };
    union {
        char bytes[CMSG_SPACE(sizeof(int) * BOUGH_WIRE_FDS)];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = 2};
    if (count > 0) {
        memset(&control, 0, sizeof control);
        msg.msg_control = control.bytes;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
        memcpy(CMSG_DATA(cmsg), all, sizeof(int) * (size_t)count);
    }
    if (BOUGH_RETRY(sendmsg(sock, &msg, MSG_NOSIGNAL)) < 0)
        return bough_err_sys(err, errno, "message");
    return 0;
}

static int read_payload(struct bough_message *msg, struct bough_err *err)
{
    BOUGH_CLEANUP_FD int fd = msg->fds[0];
    memmove(msg->fds, msg->fds + 1, sizeof(int) * (size_t)(msg->fd_count - 1));
    msg->fd_count--;
    struct stat st;
    if (fstat(fd, &st) < 0 || st.st_size < 0 || st.st_size > BOUGH_WIRE_PAYLOAD_MAX)
        return bough_err_set(err, BOUGH_ERR_protocol, "message: bad payload");
    uint8_t *data = malloc((size_t)st.st_size + 1);
    if (!data)
        return bough_err_sys(err, ENOMEM, "message");
    free(msg->data);
    msg->data = data;
    msg->size = (size_t)st.st_size;
    size_t done = 0;
    while (done < msg->size) {
        ssize_t n = BOUGH_RETRY(pread(fd, data + done, msg->size - done, (off_t)done));
        if (n <= 0)
            return bough_err_set(err, BOUGH_ERR_protocol, "message: short payload");
        done += (size_t)n;
    }
    msg->body = (struct bough_rbuf){.at = data, .end = data + msg->size};
    return 0;
}

int bough_recv(int sock, struct bough_message *msg, struct bough_err *err)
{
    *msg = (struct bough_message){0};
    struct header header;
    uint8_t *data = malloc(BOUGH_WIRE_INLINE + 16);
    if (!data)
        return bough_err_sys(err, ENOMEM, "message");
    struct iovec iov[2] = {
        {.iov_base = &header, .iov_len = sizeof header},
        {.iov_base = data, .iov_len = BOUGH_WIRE_INLINE + 16},
    };
    union {
        char bytes[CMSG_SPACE(sizeof(int) * BOUGH_WIRE_FDS)];
        struct cmsghdr align;
    } control;
    struct msghdr hdr = {.msg_iov = iov,
                         .msg_iovlen = 2,
                         .msg_control = control.bytes,
                         .msg_controllen = sizeof control};
    ssize_t n = BOUGH_RETRY(recvmsg(sock, &hdr, MSG_CMSG_CLOEXEC));
    if (n <= 0) {
        int sys = n == 0 || errno == ECONNRESET ? 0 : errno;
        free(data);
        return sys ? bough_err_sys(err, sys, "message") : 0;
    }
    msg->data = data;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&hdr); c; c = CMSG_NXTHDR(&hdr, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + sizeof(int) * (size_t)i, sizeof fd);
            if (msg->fd_count < BOUGH_WIRE_FDS)
                msg->fds[msg->fd_count++] = fd;
            else
                close(fd);
        }
    }
    if ((size_t)n >= sizeof header && (hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == MSG_CTRUNC) {
        bough_msg_clear(msg);
        msg->type = (enum bough_msg)header.type;
        msg->id = header.id;
        return bough_err_sys(err, EMFILE, "no room for a descriptor that was sent");
    }
    if ((size_t)n < sizeof header || (hdr.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) ||
        (header.in_memfd && msg->fd_count == 0)) {
        bough_msg_clear(msg);
        return bough_err_set(err, BOUGH_ERR_protocol, "message: malformed packet");
    }
    msg->type = (enum bough_msg)header.type;
    msg->id = header.id;
    msg->size = (size_t)n - sizeof header;
    msg->body = (struct bough_rbuf){.at = data, .end = data + msg->size};
    if (header.in_memfd && read_payload(msg, err) < 0) {
        bough_msg_clear(msg);
        return -1;
    }
    return 1;
}
