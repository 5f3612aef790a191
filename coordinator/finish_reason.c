/* Names the reasons for which a request ends, as clients see them. */
#include "coordinator/scheduler.h"

const char *finish_reason_name(enum finish_reason reason)
{
    static const char *const names[] = {
        [FINISH_NONE] = "none",           [FINISH_STOP] = "stop",   [FINISH_LENGTH] = "length",
        [FINISH_CANCELLED] = "cancelled", [FINISH_ERROR] = "error",
    };
    if ((unsigned)reason >= sizeof names / sizeof names[0])
        return "none";
    return names[reason];
}
