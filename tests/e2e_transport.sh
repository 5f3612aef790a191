#!/bin/bash
# The MPI transport in real jobs of 1 to 5 ranks on this host: content, order, wake, idle cost, latency, launching.
# The last line is "N passed, N failed"; the exit code is 1 when one failed. BUILD= names another build variant.
cd "$(dirname "$0")/.." || exit 1
BUILD=${BUILD:-build/release}
check=$BUILD/tests/mpi_transport_check
make --no-print-directory "$check" >/dev/null || { echo "0 passed, 1 failed"; exit 1; }

export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
passed=0 failed=0

ok() { passed=$((passed + 1)); sed 's/^/  /' "$out"; }
no() { failed=$((failed + 1)); echo "FAILED $1"; sed 's/^/  /' "$out"; }

# rank_check N ARGS..: the check must end well by itself.
rank_check() {
    local n=$1; shift
    if timeout -k 2 90 mpirun --quiet -n "$n" --oversubscribe --bind-to none "$check" "$@" \
        >"$out" 2>&1 </dev/null
    then ok; else no "$* with $n ranks"; fi
}

for n in 1 2 3 5; do rank_check "$n" mix "$((n + 10))"; done
rank_check 1 reject
for n in 1 3; do rank_check "$n" wake; done
rank_check 5 idle 3
for n in 2 5; do rank_check "$n" latency; done

# Between hosts the traffic is TCP: the same with shared memory switched off, and with the library's poll instead of epoll.
echo "over TCP:"
export OMPI_MCA_btl=self,tcp
rank_check 4 mix 21
rank_check 5 idle 2
rank_check 2 latency
export OMPI_MCA_opal_event_include=poll
rank_check 2 mix 22
unset OMPI_MCA_btl OMPI_MCA_opal_event_include

# launch_mpirun: with nothing set in the environment, rank 0 reads stdin, an error keeps its code and is not talked over.
launch() { env -i PATH="$PATH" HOME="$HOME" $more timeout -k 2 60 "$check" launch "$@"; }
more=
echo "launching:"
if echo "a line" | launch 3 stdin >"$out" 2>&1 &&
    grep -q "^stdin: 'a line', is a rank: 1, terminal: 0, columns: (null)$" "$out"
then ok; else no "stdin of rank 0"; fi
if command -v script >/dev/null; then
    if script -qec "stty cols 93; echo x | env -i PATH='$PATH' '$check' launch 2 stdin" /dev/null \
        </dev/null >"$out" 2>&1 && grep -q "terminal: 1, columns: 93" "$out"
    then ok; else no "what the ranks know about the terminal"; fi
fi
launch 3 exit 7 >"$out" 2>&1 </dev/null
code=$?
if [ "$code" -eq 7 ] && [ "$(cat "$out")" = "rank 0 has an error to tell" ]
then ok; else no "exit code of rank 0: $code"; fi
# A launch from inside a job of one rank, and from inside what looks like a Slurm allocation.
if mpirun --quiet -n 1 "$check" launch 2 mix 5 >"$out" 2>&1 </dev/null
then ok; else no "launch inside mpirun"; fi
more="SLURM_JOB_ID=1 SLURM_JOBID=1 SLURM_NNODES=2 SLURM_NODELIST=n[1-2] SLURM_TASKS_PER_NODE=1(x2)"
if launch 2 mix 6 >"$out" 2>&1 </dev/null
then ok; else no "launch inside an allocation"; fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
