/* `carousel bench replica`: one replica's decoding and prefill beside what its machine allows. */
#ifndef CLI_BENCH_REPLICA_H
#define CLI_BENCH_REPLICA_H

int cli_bench_replica(int argc, char **argv);

#endif
