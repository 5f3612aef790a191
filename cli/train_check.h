/* Says what a recipe would do, without training: for --check. */
#ifndef CLI_TRAIN_CHECK_H
#define CLI_TRAIN_CHECK_H

#include "proto/status.h"
#include "train/recipe.h"

#include <stdbool.h>

/* Prints the recipe's model, sources, stages and curriculum to stdout, as text or one JSON object;
 * files it names that cannot be read are listed, not an error. */
enum status train_check(const struct recipe *r, bool as_json, struct err *err);

#endif
