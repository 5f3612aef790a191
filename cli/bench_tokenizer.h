/* `carousel bench tokenizer`. */
#ifndef CLI_BENCH_TOKENIZER_H
#define CLI_BENCH_TOKENIZER_H

/* argv[0] is "bench tokenizer" or "tokenizer"; returns the exit code. */
int cli_bench_tokenizer(int argc, char **argv);

#endif
