/* `carousel bench`: finds the benchmark and hands it its arguments. */
#include "cli/bench_calibrate.h"
#include "cli/bench_kernels.h"
#include "cli/bench_net.h"
#include "cli/bench_replica.h"
#include "cli/bench_tokenizer.h"
#include "cli/bench_trace.h"
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>

static const char help[] =
    "usage: carousel bench BENCHMARK [options]\n"
    "  kernels    the block's linear layers and attention, beside peak and bandwidth\n"
    "  replica    decoding and prefill on one replica, beside the bounds\n"
    "  net        ping-pong of frame sizes between two ranks\n"
    "  engine     requests through the whole engine: tokens/s, TTFT, TPOT\n"
    "  calibrate  what work costs here, as a file for simulate and --backend timed\n"
    "  tokenizer  text to ids and back\n"
    "  trace      what a trace record costs\n"
    "Each has --help and --json.";

int cli_bench(int argc, char **argv, char **program_argv)
{
    if (argc < 2) {
        fprintf(stderr, "carousel bench: no benchmark given; carousel bench --help lists them\n");
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "engine") == 0)
        return cli_bench_engine(argc - 1, argv + 1, program_argv);
    if (strcmp(argv[1], "calibrate") == 0)
        return cli_bench_calibrate(argc - 1, argv + 1);
    if (strcmp(argv[1], "kernels") == 0)
        return cli_bench_kernels(argc - 1, argv + 1);
    if (strcmp(argv[1], "replica") == 0)
        return cli_bench_replica(argc - 1, argv + 1);
    if (strcmp(argv[1], "net") == 0)
        return cli_bench_net(argc - 1, argv + 1);
    if (strcmp(argv[1], "tokenizer") == 0)
        return cli_bench_tokenizer(argc - 1, argv + 1);
    if (strcmp(argv[1], "trace") == 0)
        return cli_bench_trace(argc - 1, argv + 1);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        puts(help);
        return CLI_OK;
    }
    fprintf(stderr,
            "carousel bench: there is no benchmark '%s'; carousel bench --help lists them\n",
            argv[1]);
    return CLI_USAGE;
}
