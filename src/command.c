#define _GNU_SOURCE
#include "command.h"

#include <stdlib.h>

void bough_command_put(struct bough_wbuf *buf, const struct bough_command *command)
{
    bough_put_i64(buf, command->timeout_ms);
    bough_put_i64(buf, command->streams);
    bough_put_i64(buf, command->pty);
    bough_put_i64(buf, command->rows);
    bough_put_i64(buf, command->cols);
    bough_put_i64(buf, command->files);
    bough_put_str(buf, command->cwd);
    bough_put_str(buf, command->user);
    bough_put_strv(buf, command->argv);
    bough_put_strv(buf, command->env);
}

int bough_command_get(struct bough_rbuf *buf, struct bough_command *command, struct bough_err *err)
{
    *command = (struct bough_command){0};
    command->timeout_ms = bough_get_i64(buf);
    command->streams = (int)bough_get_i64(buf) & 7;
    command->pty = bough_get_i64(buf) != 0;
    command->rows = (int)bough_get_i64(buf);
    command->cols = (int)bough_get_i64(buf);
    command->files = bough_get_i64(buf);
    command->cwd = bough_get_str(buf);
    command->user = bough_get_str(buf);
    command->argv = bough_get_strv(buf);
    command->env = bough_get_strv(buf);
    if (buf->failed || !command->argv || !command->argv[0] || !command->env || !command->cwd ||
        !command->user) {
        bough_command_clear(command);
        return bough_err_set(err, BOUGH_ERR_protocol, "command: malformed");
    }
    return 0;
}

void bough_command_clear(struct bough_command *command)
{
    free(command->argv);
    free(command->env);
    *command = (struct bough_command){0};
}

void bough_end_put(struct bough_wbuf *buf, const struct bough_end *end)
{
    bough_put_i64(buf, end->status);
    bough_put_i64(buf, end->timed_out);
    bough_put_i64(buf, end->elapsed_ns);
    bough_put_i64(buf, end->user_us);
    bough_put_i64(buf, end->system_us);
    bough_put_i64(buf, end->max_rss);
    bough_put_i64(buf, end->usage.minor_faults);
    bough_put_i64(buf, end->usage.major_faults);
    bough_put_i64(buf, end->usage.blocks_in);
    bough_put_i64(buf, end->usage.blocks_out);
    bough_put_i64(buf, end->usage.waits);
    bough_put_i64(buf, end->usage.preemptions);
}

int bough_end_get(struct bough_rbuf *buf, struct bough_end *end, struct bough_err *err)
{
    *end = (struct bough_end){0};
    end->status = bough_get_i64(buf);
    end->timed_out = bough_get_i64(buf) != 0;
    end->elapsed_ns = bough_get_i64(buf);
    end->user_us = bough_get_i64(buf);
    end->system_us = bough_get_i64(buf);
    end->max_rss = bough_get_i64(buf);
    end->usage.known = true;
    end->usage.minor_faults = bough_get_i64(buf);
    end->usage.major_faults = bough_get_i64(buf);
    end->usage.blocks_in = bough_get_i64(buf);
    end->usage.blocks_out = bough_get_i64(buf);
    end->usage.waits = bough_get_i64(buf);
    end->usage.preemptions = bough_get_i64(buf);
    if (buf->failed)
        return bough_err_set(err, BOUGH_ERR_protocol, "end of a process: malformed");
    return 0;
}
