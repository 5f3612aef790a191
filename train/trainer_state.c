/* What a training run finds and leaves on disk: its beginning, its states, the model. */
#include "train/trainer_private.h"

#include "cluster/host.h"
#include "model/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STREAM_VALUES = -2, STREAM_INIT = -3, LOCK_BYTES = 160 };

enum status trainer_make_directory(const char *path, struct err *err)
{
    char part[PATH_MAX];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof part)
        return err_set(err, STATUS_INVALID, "--out: a path of %zu bytes, accepted are 1 to %zu", n,
                       sizeof part - 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST)
            return err_set(err, STATUS_IO, "cannot make the directory %s: %s", part,
                           strerror(errno));
    }
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return err_set(err, STATUS_INVALID, "%s is not a directory; choose another --out", path);
    return STATUS_OK;
}

/* ---- fresh values -----------------------------------------------------------------------------
 */

static enum status load_model(struct trainer *t, uint64_t *content, struct err *err)
{
    struct checkpoint *checkpoint;
    enum status status =
        checkpoint_open(t->options->init_from, t->recipe->config.n_loops, &checkpoint, err);
    if (status != STATUS_OK)
        return err_wrap(err, "--init-from");
    int n_theirs = checkpoint->config.vocab_size, n_ours = t->recipe->config.vocab_size;
    if (n_theirs != n_ours)
        status = err_set(err, STATUS_MISMATCH,
                         "--init-from: %s has a vocabulary of %d tokens, the recipe one of %d: "
                         "start from a model with the recipe's tokenizer",
                         t->options->init_from, n_theirs, n_ours);
    else if ((status = params_load(t->params, checkpoint, err)) != STATUS_OK)
        err_wrap(err, "--init-from %s", t->options->init_from);
    else
        *content = checkpoint->fingerprint;
    checkpoint_close(checkpoint);
    return status;
}

/* The weights of init_from: a directory is a model's, anything else a state file. */
static enum status load_init(struct trainer *t, struct err *err)
{
    const char *path = t->options->init_from;
    struct stat st;
    uint64_t content = 0;
    enum status status;
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode)) {
        status = train_state_load_values(path, t->params, &content, err);
        if (status != STATUS_OK)
            err_wrap(err, "--init-from");
    } else {
        status = load_model(t, &content, err);
    }
    if (status != STATUS_OK)
        return status;
    if (t->init_content != 0 && content != t->init_content)
        return err_set(err, STATUS_MISMATCH,
                       "--init-from: %s is not the one that the run began with any more", path);
    t->init_content = content;
    return STATUS_OK;
}

enum status trainer_open_init(struct trainer *t, struct err *err)
{
    enum status status = load_init(t, err);
    if (status != STATUS_OK)
        return status;
    struct random mix = random_of(t->fingerprint, t->init_content, (uint64_t)STREAM_INIT);
    t->fingerprint = random_bits(&mix);
    return STATUS_OK;
}

enum status trainer_fresh_values(struct trainer *t, struct err *err)
{
    struct random r = random_of(t->seed, (uint64_t)t->state.attempt, (uint64_t)STREAM_VALUES);
    optimizer_reset(&t->optimizer, t->params);
    params_draw(t->params, &t->recipe->init, random_bits(&r));
    return t->options->init_from != NULL && t->rank == 0 ? load_init(t, err) : STATUS_OK;
}

/* ---- one run a directory ----------------------------------------------------------------------
 */

/* The file stays: removing it would let two processes hold two files of the same name. */
enum status trainer_lock(struct trainer *t, struct err *err)
{
    char path[PATH_MAX], holder[LOCK_BYTES], host[LOCK_BYTES / 2];
    const char *dir = t->options->out_dir;
    int n = snprintf(path, sizeof path, "%s/lock", dir);
    if (n < 0 || (size_t)n >= sizeof path)
        return err_set(err, STATUS_INVALID, "--out: the path is too long");
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return err_set(err, STATUS_IO, "cannot open %s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        ssize_t n_read = why == EWOULDBLOCK ? read(fd, holder, sizeof holder - 1) : 0;
        holder[n_read > 0 ? n_read : 0] = '\0';
        holder[strcspn(holder, "\n")] = '\0';
        close(fd);
        /* A file system without locks protects nothing, and is no reason not to train. */
        return why == EWOULDBLOCK
                   ? err_set(err, STATUS_INVALID,
                             "another training (%s) is writing to %s: wait for its end, or choose "
                             "another --out",
                             holder[0] != '\0' ? holder : "of an unknown process", dir)
                   : STATUS_OK;
    }
    t->lock = fd;
    host_name(host, sizeof host);
    n = snprintf(holder, sizeof holder, "pid %ld on %s\n", (long)getpid(), host);
    if (ftruncate(fd, 0) != 0 || write(fd, holder, (size_t)n) != n)
        return err_set(err, STATUS_IO, "cannot write %s: %s", path, strerror(errno));
    return STATUS_OK;
}

/* ---- states -----------------------------------------------------------------------------------
 */

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* Is the file one of out_dir? */
static bool is_own(const struct trainer *t, const char *path)
{
    char own[PATH_MAX];
    struct stat a, b;
    int n = snprintf(own, sizeof own, "%s/%s", t->options->out_dir, base_name(path));
    return n > 0 && (size_t)n < sizeof own && stat(path, &a) == 0 && stat(own, &b) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* A run that goes on from an older state takes another way than the newer ones did: those would
 * be taken for its own newest by the next --resume. They stay, under another name. */
static enum status set_newer_aside(struct trainer *t, struct err *err)
{
    char newest[PATH_MAX], aside[PATH_MAX + 16];
    while (train_state_newest(t->options->out_dir, newest, sizeof newest, NULL) == STATUS_OK &&
           strcmp(base_name(newest), base_name(t->last_state)) > 0) {
        snprintf(aside, sizeof aside, "%.*s/left-%s", (int)(base_name(newest) - newest - 1), newest,
                 base_name(newest));
        if (rename(newest, aside) != 0)
            return err_set(err, STATUS_IO, "cannot rename %s: %s", newest, strerror(errno));
    }
    return STATUS_OK;
}

/* The state to go on from; "" when the run starts at the beginning. */
static enum status find_state(struct trainer *t, char *path, size_t cap_bytes, struct err *err)
{
    const struct trainer_options *o = t->options;
    char own[PATH_MAX];
    bool has_own = train_state_newest(o->out_dir, own, sizeof own, NULL) == STATUS_OK;
    path[0] = '\0';
    if (o->resume == NULL && has_own && !o->resume_if_any)
        return err_set(err, STATUS_INVALID,
                       "%s holds a run already (its newest state is %s): go on with it by "
                       "--resume, or choose another --out",
                       o->out_dir, base_name(own));
    if (o->resume == NULL) {
        if (has_own)
            snprintf(path, cap_bytes, "%s", own);
        return STATUS_OK;
    }
    struct stat st;
    if (stat(o->resume, &st) != 0)
        return err_set(err, STATUS_NOT_FOUND, "cannot resume from %s: %s", o->resume,
                       strerror(errno));
    if (S_ISDIR(st.st_mode)) {
        enum status status = train_state_newest(o->resume, path, cap_bytes, err);
        if (status != STATUS_OK)
            return status;
    } else {
        snprintf(path, cap_bytes, "%s", o->resume);
    }
    if (has_own && !is_own(t, path))
        return err_set(err, STATUS_INVALID,
                       "%s holds another run (its newest state is %s) than the one to go on from, "
                       "%s: choose another --out",
                       o->out_dir, base_name(own), path);
    return STATUS_OK;
}

enum status trainer_restore(struct trainer *t, struct err *err)
{
    char path[PATH_MAX];
    enum status status = find_state(t, path, sizeof path, err);
    if (status != STATUS_OK)
        return status;
    curriculum_init(t->recipe, &t->state);
    if (path[0] == '\0')
        return trainer_fresh_values(t, err);
    struct train_state_head head;
    status = train_state_load(path, t->seed, t->fingerprint, &head, t->params, &t->optimizer, err);
    if (status != STATUS_OK)
        return status;
    t->state = head.curriculum;
    strcpy(t->last_state, path);
    return is_own(t, path) ? set_newer_aside(t, err) : STATUS_OK;
}

enum status trainer_save(struct trainer *t, struct err *err)
{
    struct train_state_head head = {
        .seed = t->seed, .recipe_fingerprint = t->fingerprint, .curriculum = t->state};
    char path[PATH_MAX];
    enum status status = train_state_save(t->options->out_dir, t->options->keep, &head, t->params,
                                          &t->optimizer, err);
    if (status == STATUS_OK)
        status = train_state_newest(t->options->out_dir, path, sizeof path, err);
    if (status != STATUS_OK)
        return status;
    strcpy(t->last_state, path);
    if (t->listener->on_saved != NULL)
        t->listener->on_saved(t->listener->user, path);
    return STATUS_OK;
}

enum status trainer_export(struct trainer *t, struct err *err)
{
    char dir[PATH_MAX];
    int n = snprintf(dir, sizeof dir, "%s/model", t->options->out_dir);
    if (n < 0 || (size_t)n >= sizeof dir)
        return err_set(err, STATUS_INVALID, "the path %s/model is too long", t->options->out_dir);
    enum status status = trainer_make_directory(dir, err);
    if (status != STATUS_OK)
        return status;
    char tokenizer[PATH_MAX] = "";
    if (t->recipe->tokenizer[0] != '\0')
        status = recipe_file(t->recipe, t->recipe->tokenizer, tokenizer, sizeof tokenizer, err);
    if (status != STATUS_OK)
        return status;
    return train_state_export(dir, t->params, tokenizer[0] != '\0' ? tokenizer : NULL, err);
}
