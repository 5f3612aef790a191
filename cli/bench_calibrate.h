/* `carousel bench calibrate`. */
#ifndef CLI_BENCH_CALIBRATE_H
#define CLI_BENCH_CALIBRATE_H

int cli_bench_calibrate(int argc, char **argv);

#endif
