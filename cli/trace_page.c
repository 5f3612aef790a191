/* Writes the page of a trace: one HTML file that needs nothing else. */
#include "cli/trace_page.h"

#include "model/atomic_file.h"

#include <assert.h>
#include <string.h>

/* trace_page.html as it is, with a 0 behind it. */
__asm__(".pushsection .rodata\n"
        ".global trace_page_html\n"
        "trace_page_html:\n"
        ".incbin \"cli/trace_page.html\"\n"
        ".byte 0\n"
        ".popsection\n");
extern const char trace_page_html[];

/* Each stands in the page once; what is made for the trace takes its place. */
static const char *const marks[] = {"@TITLE@", "@TABLES@", "@DATA@"};
enum { MARK_TITLE = 0, MARK_TABLES, MARK_DATA, N_MARKS };

static enum status add_part(int mark, const struct trace_report *r, const struct trace_set *set,
                            struct text *out, struct err *err)
{
    switch (mark) {
    case MARK_TITLE:
        trace_page_add_escaped(out, set->model);
        text_adds(out, set->is_simulated ? ", simulated" : "");
        return STATUS_OK;
    case MARK_TABLES:
        trace_page_add_tables(r, set, out);
        return STATUS_OK;
    default:
        return trace_page_add_data(r, set, out, err);
    }
}

enum status trace_page_write(const struct trace_report *r, const struct trace_set *set,
                             const char *path, struct err *err)
{
    struct text page = {0};
    enum status status = STATUS_OK;
    const char *rest = trace_page_html;
    for (int i = 0; i < N_MARKS && status == STATUS_OK; i++) {
        const char *mark = strstr(rest, marks[i]);
        assert(mark != NULL);
        text_add(&page, rest, (size_t)(mark - rest));
        rest = mark + strlen(marks[i]);
        status = add_part(i, r, set, &page, err);
    }
    text_adds(&page, rest);
    if (status == STATUS_OK && page.is_broken)
        status = err_set(err, STATUS_NO_MEMORY, "no memory for the page %s", path);
    if (status == STATUS_OK)
        status = atomic_file_write(path, page.bytes, page.len_bytes, err);
    text_free(&page);
    return status;
}
