/* Says in a file where the server is, so that a reader sees the old state or the new one, whole. */
#include "coordinator/endpoint_file.h"

#include "coordinator/json_writer.h"
#include "model/atomic_file.h"

#include <limits.h>
#include <string.h>
#include <unistd.h>

/* The name other hosts know this one by, where the server listens on every address. */
static const char *reachable_host(const char *host, char *name, size_t name_bytes)
{
    static const char *const wildcards[] = {"", "*", "0.0.0.0", "::", "[::]"};
    bool is_wildcard = false;
    for (size_t i = 0; i < sizeof wildcards / sizeof wildcards[0]; i++)
        is_wildcard = is_wildcard || strcmp(host, wildcards[i]) == 0;
    if (!is_wildcard || gethostname(name, name_bytes) != 0 || name[0] == '\0')
        return host;
    name[name_bytes - 1] = '\0';
    return name;
}

enum status endpoint_file_write(const char *path, const struct endpoint *endpoint, struct err *err)
{
    char name[HOST_NAME_MAX + 1];
    const char *host = reachable_host(endpoint->host, name, sizeof name);
    bool is_ipv6 = strchr(host, ':') != NULL && host[0] != '[';
    struct text url = {0}, json = {0};
    struct json_writer w;
    text_addf(&url, is_ipv6 ? "%s://[%s]:%u" : "%s://%s:%u", endpoint->scheme, host,
              (unsigned)endpoint->port);
    json_writer_init(&w, &json);
    json_write_begin_object(&w);
    json_write_key(&w, "host");
    json_write_string(&w, host);
    json_write_key(&w, "port");
    json_write_integer(&w, endpoint->port);
    json_write_key(&w, "url");
    json_write_bytes(&w, url.bytes, url.len_bytes);
    json_write_key(&w, "pid");
    json_write_integer(&w, getpid());
    json_write_key(&w, "state");
    json_write_string(&w, endpoint->state);
    json_write_key(&w, "model");
    json_write_string(&w, endpoint->model);
    json_write_key(&w, "version");
    json_write_string(&w, CAROUSEL_VERSION);
    json_write_end_object(&w);
    text_adds(&json, "\n");
    enum status status =
        url.is_broken || json.is_broken
            ? err_set(err, STATUS_NO_MEMORY, "no memory to write the endpoint file %s", path)
            : atomic_file_write(path, json.bytes, json.len_bytes, err);
    text_free(&url);
    text_free(&json);
    return status;
}
