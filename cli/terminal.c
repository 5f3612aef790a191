/* Finds out whether somebody is watching, and with how many columns. */
#include "cli/terminal.h"

#include "cluster/launch.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

static bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0';
}

/* The first of the variables that is set decides, as in setlocale. None: containers often have no
 * locale while every terminal of today reads UTF-8. */
static bool locale_is_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (is_set(names[i])) {
            const char *value = getenv(names[i]);
            return strcasestr(value, "utf-8") != NULL || strcasestr(value, "utf8") != NULL;
        }
    return true;
}

static int find_columns(int fd)
{
    struct winsize size = {0};
    const char *told = getenv("CAROUSEL_COLUMNS");
    int columns = told != NULL ? atoi(told) : 0;
    if (columns <= 0 && ioctl(fd, TIOCGWINSZ, &size) == 0)
        columns = size.ws_col;
    if (columns <= 0 && is_set("COLUMNS"))
        columns = atoi(getenv("COLUMNS"));
    return columns <= 0 ? 80 : columns < 40 ? 40 : columns;
}

void terminal_look(int fd, struct terminal *out)
{
    const char *told = getenv(fd == STDERR_FILENO ? "CAROUSEL_TTY_ERR" : "CAROUSEL_TTY_OUT");
    const char *term = getenv("TERM");
    /* mpirun gives its ranks a terminal of their own, whatever the user's is. */
    out->is_terminal =
        (told != NULL && strcmp(told, "1") == 0) || (!launch_is_rank() && isatty(fd));
    out->has_colour =
        out->is_terminal && !is_set("NO_COLOR") && (term == NULL || strcmp(term, "dumb") != 0);
    out->has_utf8 = locale_is_utf8();
    out->columns = find_columns(fd);
}
