/* Says what a recipe would do, without training: for --check. */
#ifndef CLI_TRAIN_CHECK_H
#define CLI_TRAIN_CHECK_H

#include "proto/status.h"
#include "train/recipe.h"

#include <stdbool.h>

/* Prints the recipe's model, sources, stages and curriculum to stdout, as text or one JSON object.
 * STATUS_NOT_FOUND when a file it names cannot be read. */
enum status train_check(const struct recipe *r, bool as_json, struct err *err);

#endif
