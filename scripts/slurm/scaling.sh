#!/usr/bin/env bash
# The scaling study on Slurm: one job for each number of nodes, then one that draws what they have measured.
#
#   scripts/slurm/scaling.sh [--nodes 1,2,4] [--out DIR] [--time LIMIT] [--wait] [-- options of scaling_study.sh run]
#   scripts/slurm/scaling.sh --nodes 1,2,3 --out study -- --series strong,weak --repetitions 3
#
#   --nodes   how many workers, one on each node        (1,2,3,4)
#   --out     where results, logs and the plot go; all nodes see it   (./scaling)
#   --time    of each job, as sbatch takes it            (02:00:00)
#   --wait    return when the plot is drawn
#
# Account and partition: SBATCH_ACCOUNT and SBATCH_PARTITION, which sbatch reads by itself (and SBATCH_QOS, ...).
# CAROUSEL is the program, build/carousel by default. The job with the fewest nodes runs first: it searches the best
# options of one worker, the base of all others. A job that meets its time limit goes back into the queue and on from
# there, and so does the same command given again: points that are there are kept.
set -u

say() { echo "$(date +%FT%T) scaling: $*" >&2; }
fail() { echo "scaling: $*" >&2; exit 1; }

# ---- inside a job: --in-job ROOT plot DIR, or --in-job ROOT run W DIR options... ------------------

# What tells whether a start has brought something: the bytes of its points.
progress_of() { cksum "$1" 2>/dev/null; }

run_point() { # workers, DIR, options...
    local workers=$1 out=$2 before child code interrupted last
    shift 2
    before=$(progress_of "$out/w$workers.json")
    # Steps of this job take their nodes whole.
    export SLURM_WHOLE=1 SLURM_OVERLAP=1 SLURM_CPU_BIND=none
    trap 'interrupted=1' USR1
    code=0 interrupted=0
    scripts/scaling_study.sh run --workers "$workers" --out "$out" --launcher slurm "$@" </dev/null &
    child=$!
    wait "$child"
    code=$?
    if [ $interrupted -eq 1 ]; then
        say "the time limit is near"
        # What is being measured now is measured again at the next start.
        if [ "$(progress_of "$out/w$workers.json")" != "$before" ]; then
            scontrol requeue "$SLURM_JOB_ID" && say "the job waits to go on" && exit 1
        else
            say "this start has finished no point: it is not repeated; give a longer --time"
        fi
        last=$code
        kill -TERM "$child" 2>/dev/null
        wait "$child"
        code=$?
        [ $code -ne 127 ] || code=$last
    fi
    exit $code
}

if [ "${1:-}" = --in-job ]; then
    cd "$2" || exit 1
    case $3 in
        run) shift 3 && run_point "$@" ;;
        plot) exec scripts/scaling_study.sh plot "$4" ;;
        *) fail "--in-job is for the jobs of this script" ;;
    esac
fi

# ---- on the login node ---------------------------------------------------------------------------

self=$(realpath "$0")
root=$(dirname "$(dirname "$(dirname "$self")")")
nodes=1,2,3,4 out=scaling limit=02:00:00 wait_for_plot=
while [ $# -gt 0 ]; do
    case $1 in
        --nodes | --out | --time)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --nodes) nodes=$2 ;;
                --out) out=$2 ;;
                --time) limit=$2 ;;
            esac
            shift 2
            ;;
        --wait) wait_for_plot=--wait && shift ;;
        -h | --help) sed -n '2,/^set -u/{/^# \{0,1\}/s///p}' "$0" && exit 0 ;;
        --) shift && break ;;
        *) fail "what is '$1'? Options of scaling_study.sh come after --; --help says more" ;;
    esac
done
case $nodes in
    *[!0-9,]* | '' | ,* | *, | *,,*) fail "--nodes '$nodes': numbers with commas, as 1,2,4" ;;
esac
mapfile -t counts < <(tr ',' '\n' <<<"$nodes" | sort -nu)
[ "${counts[0]}" -ge 1 ] || fail "--nodes '$nodes': from 1"
command -v sbatch >/dev/null || fail "there is no Slurm here: sbatch is not on PATH (use a login node)"
program=${CAROUSEL:-$root/build/carousel}
[ -x "$program" ] || fail "no program $program: run make, or set CAROUSEL"
export CAROUSEL=$program
[ -x "$root/scripts/scaling_study.sh" ] || fail "$root/scripts/scaling_study.sh is missing"
mkdir -p "$out" || exit 1
out=$(realpath "$out")

jobs=()
for count in "${counts[@]}"; do
    after=()
    [ ${#jobs[@]} -eq 0 ] || after=("--dependency=afterany:${jobs[0]}")
    job=$(sbatch --parsable --job-name="scaling-$count" --nodes="$count" --ntasks-per-node=1 --exclusive \
        --time="$limit" --signal=B:USR1@60 --requeue --open-mode=append --output="$out/w$count-%j.log" \
        "${after[@]}" "$self" --in-job "$root" run "$count" "$out" "$@") || {
        [ ${#jobs[@]} -eq 0 ] || scancel "${jobs[@]}"
        fail "the job of $count nodes was not taken; those before it are cancelled"
    }
    job=${job%%;*} # of a federation: JOBID;CLUSTER
    jobs+=("$job")
    echo "job $job: $count nodes"
done
# Whatever has become of a job: what there is is drawn.
all=$(IFS=: && echo "${jobs[*]}")
job=$(sbatch --parsable --job-name=scaling-plot --nodes=1 --ntasks=1 --time=00:10:00 --output="$out/plot-%j.log" \
    --dependency="afterany:$all" ${wait_for_plot:+"$wait_for_plot"} "$self" --in-job "$root" plot "$out")
code=$?
job=${job%%;*}
[ -n "$job" ] || fail "the plot's job was not taken; draw it when the others are done: scripts/scaling_study.sh plot $out"
echo "job $job: the plot, $out/scaling.svg, when the others have ended"
[ $code -eq 0 ] || fail "the plot's job has failed; its log is in $out"
