/* transfer_fault.c - what went wrong with a transfer, in words that hold nothing but the host: what libcurl and
 * servers say may repeat what they were given. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "sys.h"
#include "transfer_priv.h"

void bough_transfer_locate(struct bough_transfer *t)
{
    char *url = NULL;
    CURLUcode why;
    if (curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url) != CURLE_OK || !url)
        return;
    char *host = bough_transfer_host(url, NULL, &why);
    if (host) {
        free(t->host);
        t->host = host;
    }
}

void bough_transfer_unanswered(struct bough_transfer *t)
{
    bough_err_set(&t->err, BOUGH_ERR_transport,
                  "the connection to %s was lost before its answer: whether it has done what was "
                  "asked is not known",
                  t->host);
}

/* About certificates, which libcurl can say best. One line. */
static const char *reason_of(struct bough_transfer *t, CURLcode code)
{
    for (char *c = t->reason; *c; c++)
        if ((unsigned char)*c < ' ')
            *c = ' ';
    return t->reason[0] ? t->reason : curl_easy_strerror(code);
}

/* The status of a proxy that was asked for a tunnel and gave none; 0. */
static long proxy_refusal(const struct bough_transfer *t)
{
    long status = 0;
    curl_easy_getinfo(t->easy, CURLINFO_HTTP_CONNECTCODE, &status);
    return !t->asked && status >= 300 ? status : 0;
}

static void explain_cut(struct bough_transfer *t)
{
    long status = proxy_refusal(t);
    if (status > 0)
        bough_err_set(&t->err, BOUGH_ERR_transport,
                      "the proxy gives no way to %s (HTTP %ld): check its address and credentials",
                      t->host, status);
    else if (t->once && t->sent && !t->headers_done)
        bough_transfer_unanswered(t);
    else
        bough_err_set(&t->err, BOUGH_ERR_transport,
                      "the connection to %s was cut after %lld bytes of the answer: try again",
                      t->host, (long long)t->received);
}

void bough_transfer_explain(struct bough_transfer *t, CURLcode code)
{
    long sys = 0;
    struct bough_err *err = &t->err;
    bough_transfer_locate(t);
    curl_easy_getinfo(t->easy, CURLINFO_OS_ERRNO, &sys);
    const char *host = t->host;
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        bough_err_set(err, BOUGH_ERR_transport,
                      "cannot find the host %s: check its name and the network", host);
        break;
    case CURLE_COULDNT_RESOLVE_PROXY:
        bough_err_set(err, BOUGH_ERR_transport,
                      "cannot find the proxy for %s: check the option proxy, or http_proxy and "
                      "https_proxy",
                      host);
        break;
    case CURLE_COULDNT_CONNECT:
        if (t->inside) {
            bough_err_set(
                err, BOUGH_ERR_denied,
                "%s is this machine or on its link, where requests to the outside do not go", host);
            break;
        }
        bough_err_set(err, BOUGH_ERR_transport,
                      "cannot connect to %s%s: %s: check the address and the network", host,
                      t->http->proxy && *t->http->proxy ? " by the proxy" : "",
                      sys ? strerror((int)sys) : "no answer");
        break;
    case CURLE_OPERATION_TIMEDOUT:
        if (t->active_ns == 0)
            bough_err_set(err, BOUGH_ERR_timeout,
                          "no connection to %s in time: check the address and the network", host);
        else
            bough_err_set(err, BOUGH_ERR_timeout, "%s did not finish its answer in time", host);
        break;
    case CURLE_PEER_FAILED_VERIFICATION:
        bough_err_set(
            err, BOUGH_ERR_transport,
            "the certificate of %s is not to be trusted (%s): give ca_file if the host is "
            "yours",
            host, reason_of(t, code));
        break;
    case CURLE_SSL_CACERT_BADFILE:
        bough_err_set(err, BOUGH_ERR_invalid, "ca_file %s cannot be used: %s",
                      t->http->ca_file ? t->http->ca_file : "of the system", reason_of(t, code));
        break;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
        bough_err_set(err, BOUGH_ERR_transport,
                      "no TLS connection to %s (%s): does it speak https?", host,
                      reason_of(t, code));
        break;
    case CURLE_TOO_MANY_REDIRECTS:
        bough_err_set(err, BOUGH_ERR_protocol, "%s redirects more than %ld times", host, t->follow);
        break;
    case CURLE_UNSUPPORTED_PROTOCOL:
        if (t->follow > 0 && bough_answer_field(&t->answer, "location"))
            bough_err_set(err, BOUGH_ERR_transport,
                          "%s redirects away from https, which is refused", host);
        else
            bough_err_set(err, BOUGH_ERR_protocol, "%s does not speak HTTP", host);
        break;
    case CURLE_LOGIN_DENIED:
    case CURLE_URL_MALFORMAT:
        bough_err_set(err, BOUGH_ERR_protocol, "%s redirects to a URL that cannot be followed",
                      host);
        break;
    case CURLE_WEIRD_SERVER_REPLY:
        bough_err_set(err, BOUGH_ERR_protocol, "%s answers with what is not HTTP", host);
        break;
    case CURLE_OUT_OF_MEMORY:
    case CURLE_FAILED_INIT:
        bough_err_set(err, BOUGH_ERR_resource, "out of memory or descriptors");
        break;
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_SEND_FAIL_REWIND:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
        explain_cut(t);
        break;
    default:
        bough_err_set(err, BOUGH_ERR_transport, "%s: %s", host, curl_easy_strerror(code));
        break;
    }
}
