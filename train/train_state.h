/* A training run on disk: weights, moments, curriculum; written whole or not at all.
 *
 * One safetensors file a checkpoint, state-<step, 9 digits>.safetensors: tensors as in the model,
 * adam_m.<name>, adam_v.<name>; __metadata__ has the step, the curriculum, recipe and hashes.
 * Written to a temporary name, synced, then renamed: whoever is killed in between leaves the last
 * good one. */
#ifndef TRAIN_TRAIN_STATE_H
#define TRAIN_TRAIN_STATE_H

#include "train/curriculum.h"
#include "train/optimizer.h"
#include "train/params.h"

struct train_state_head {
    uint64_t seed;
    uint64_t recipe_fingerprint;
    struct curriculum_state curriculum;
};

/* Writes dir/state-<step>.safetensors and removes all but the newest `keep`. Errors name the path
 * and what the system said; on failure nothing that was there has changed. */
enum status train_state_save(const char *dir, int keep, const struct train_state_head *head,
                             const struct params *p, const struct optimizer *o, struct err *err);
/* The newest state file of dir by name; STATUS_NOT_FOUND. */
enum status train_state_newest(const char *dir, char *path, size_t cap_bytes, struct err *err);
/* STATUS_CORRUPT (cut short, content hash differs), STATUS_MISMATCH (another model, recipe or
 * seed): the message names the file and, when corrupt, the older good one to resume from if there
 * is one. Outputs are written on success only. */
enum status train_state_load(const char *path, uint64_t seed, uint64_t recipe_fingerprint,
                             struct train_state_head *head, struct params *p, struct optimizer *o,
                             struct err *err);
/* The values alone, for a new run of any recipe and seed whose model has the state's shapes.
 * *content is the hash of all the file holds. STATUS_CORRUPT, STATUS_MISMATCH; outputs are written
 * on success only. */
enum status train_state_load_values(const char *path, struct params *p, uint64_t *content,
                                    struct err *err);
/* The trained model as a Hugging Face directory: config.json, model.safetensors (fp32), tokenizer
 * files (the tasks' or a copy of `tokenizer`). Each file atomically. */
enum status train_state_export(const char *dir, const struct params *p, const char *tokenizer,
                               struct err *err);

#endif
