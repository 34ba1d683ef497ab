#define _GNU_SOURCE
#include "answer.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#define DATA_LEAST 1024
#define DATA_KEPT 16384 /* of a stream's buffer while it is empty */

void bough_answer_clear(struct bough_answer *answer)
{
    for (size_t i = 0; i < answer->field_count; i++) {
        free(answer->fields[i].name);
        free(answer->fields[i].value);
    }
    answer->field_count = 0;
}

void bough_answer_free(struct bough_answer *answer)
{
    bough_answer_clear(answer);
    free(answer->fields);
    free(answer->data);
    *answer = (struct bough_answer){0};
}

static bool reserve_field(struct bough_answer *answer)
{
    if (answer->field_count < answer->field_room)
        return true;
    size_t room = answer->field_room ? answer->field_room * 2 : 16;
    struct bough_field *grown = realloc(answer->fields, room * sizeof *grown);
    if (!grown)
        return false;
    answer->fields = grown;
    answer->field_room = room;
    return true;
}

bool bough_answer_header(struct bough_answer *answer, const char *line, size_t size)
{
    const char *colon = memchr(line, ':', size);
    if (!colon || colon == line)
        return true;
    if (answer->field_count == BOUGH_ANSWER_FIELDS || !reserve_field(answer))
        return false;
    const char *value = colon + 1, *end = line + size;
    while (value < end && isspace((unsigned char)*value))
        value++;
    while (end > value && isspace((unsigned char)end[-1]))
        end--;
    struct bough_field *field = &answer->fields[answer->field_count];
    field->name = strndup(line, (size_t)(colon - line));
    field->value = strndup(value, (size_t)(end - value));
    if (!field->name || !field->value) {
        free(field->name);
        free(field->value);
        return false;
    }
    for (char *c = field->name; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    answer->field_count++;
    return true;
}

const char *bough_answer_field(const struct bough_answer *answer, const char *name)
{
    for (size_t i = 0; i < answer->field_count; i++)
        if (strcmp(answer->fields[i].name, name) == 0)
            return answer->fields[i].value;
    return NULL;
}

bool bough_answer_append(struct bough_answer *answer, const char *data, size_t size)
{
    size_t left = answer->size - answer->taken;
    if (answer->size + size > answer->room && answer->taken > 0) {
        memmove(answer->data, answer->data + answer->taken, left);
        answer->size = left;
        answer->taken = 0;
    }
    if (answer->size + size > answer->room) {
        size_t room = answer->room ? answer->room : DATA_LEAST;
        while (room < answer->size + size)
            room *= 2;
        char *grown = realloc(answer->data, room);
        if (!grown)
            return false;
        answer->data = grown;
        answer->room = room;
    }
    memcpy(answer->data + answer->size, data, size);
    answer->size += size;
    return true;
}

void bough_answer_take(struct bough_answer *answer, size_t size)
{
    answer->taken += size;
    if (answer->taken < answer->size)
        return;
    answer->taken = answer->size = 0;
    if (answer->room > DATA_KEPT) {
        free(answer->data);
        answer->data = NULL;
        answer->room = 0;
    }
}
