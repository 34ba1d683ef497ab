#include "sha256.h"

#include <openssl/evp.h>
#include <stdint.h>
#include <stdlib.h>

struct bough_sha256 {
    EVP_MD_CTX *running, *copy; /* the copy is finished in place of the running one */
};

struct bough_sha256 *bough_sha256_new(void)
{
    struct bough_sha256 *state = calloc(1, sizeof *state);
    if (!state)
        return NULL;
    state->running = EVP_MD_CTX_new();
    state->copy = EVP_MD_CTX_new();
    /* Both are set up here, so that nothing has to be allocated later. */
    if (!state->running || !state->copy || !EVP_DigestInit_ex(state->running, EVP_sha256(), NULL) ||
        !EVP_MD_CTX_copy_ex(state->copy, state->running)) {
        bough_sha256_free(state);
        return NULL;
    }
    return state;
}

void bough_sha256_free(struct bough_sha256 *state)
{
    if (!state)
        return;
    EVP_MD_CTX_free(state->running);
    EVP_MD_CTX_free(state->copy);
    free(state);
}

void bough_sha256_update(struct bough_sha256 *state, const void *data, size_t size)
{
    EVP_DigestUpdate(state->running, data, size);
}

void bough_sha256_hex(const struct bough_sha256 *state, char hex[BOUGH_SHA256_HEX])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t raw[32] = {0};
    EVP_MD_CTX_copy_ex(state->copy, state->running);
    EVP_DigestFinal_ex(state->copy, raw, NULL);
    for (int i = 0; i < 32; i++) {
        hex[2 * i] = digits[raw[i] >> 4];
        hex[2 * i + 1] = digits[raw[i] & 15];
    }
    hex[64] = '\0';
}
