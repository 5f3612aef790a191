#!/usr/bin/env bash
# A private Slurm on this one machine, in seconds: munged, slurmctld and several slurmd, from Debian's
# packages. Everything it has is in one directory; several testbeds may stand side by side.
#
#   scripts/slurm/testbed.sh up     [--nodes N] [--cpus C] [--dir DIR]   3 nodes of 4 CPUs in build/slurm
#   scripts/slurm/testbed.sh status [--dir DIR]
#   scripts/slurm/testbed.sh down   [--dir DIR]                          no process and no file is left
#
# `up` prints on standard output what a shell needs to use it, so: eval "$(scripts/slurm/testbed.sh up)"
# All nodes are this machine: it shows that jobs start, end, drain and are requeued as they should, not
# how fast they are. Needs root, because slurmd starts jobs under their owners' names.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
dir=$here/build/slurm
nodes=3
cpus=4
# Below the ports that the kernel hands out to clients, so that nobody takes ours between the look and the start.
PORT_LOW=18000
PORT_HIGH=31000
PORT_TRIES=8
READY_S=15
DOWN_S=10
# Slurm puts sockets below the directory, and a socket's name has 107 bytes.
LONGEST_DIR=70

fail() { echo "testbed: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -u/{/^# \{0,1\}/s///p}' "$0"; }

is_number() { # value, low, high
    case $1 in '' | *[!0-9]*) return 1 ;; esac
    [ ${#1} -le 5 ] && [ "$1" -ge "$2" ] && [ "$1" -le "$3" ]
}

# ---- whose processes are ours --------------------------------------------------------------------

# The daemons and the steps' keepers hold a file in DIR open. They change their names and with them what
# /proc shows of their environment, so the files are the surer sign.
daemon_pids() {
    local proc name fd
    for proc in /proc/[0-9]*; do
        read -r name 2>/dev/null <"$proc/comm" || continue
        case $name in munged | slurmctld | slurmscriptd | slurmd | slurmstepd) ;; *) continue ;; esac
        for fd in "$proc"/fd/*; do
            case $(readlink "$fd" 2>/dev/null) in
                "$dir"/*) echo "${proc#/proc/}"; break ;;
            esac
        done
    done
}

# What jobs have started: slurmd gave it a node's name. A user's own shell with SLURM_CONF has none.
job_pids() {
    local environ
    grep -lzxF -e "SLURM_CONF=$dir/slurm.conf" /proc/[0-9]*/environ 2>/dev/null | while read -r environ; do
        grep -qz '^SLURMD_NODENAME=' "$environ" 2>/dev/null || continue
        environ=${environ#/proc/}
        echo "${environ%/environ}"
    done
}

# ---- down ----------------------------------------------------------------------------------------

# slurmctld notices only after a while that a node has gone.
has_daemons() { # how many nodes
    local k name pid
    for name in munged slurmctld $(for ((k = 1; k <= $1; k++)); do echo "n$k"; done); do
        pid=$(cat "$dir/run/$name.pid" 2>/dev/null) && [ -n "$pid" ] || return 1
        # A dead process that nobody has waited for yet keeps its name, but not its program.
        case $(readlink "/proc/$pid/exe") in */munged* | */slurmctld* | */slurmd*) ;; *) return 1 ;; esac
    done
}

# KILL at once: nothing of what an orderly end would save is kept. Again until nobody is there, because a
# daemon may be starting a step just now.
take_down() {
    local deadline=$((SECONDS + DOWN_S)) pids
    mapfile -t pids < <(job_pids; daemon_pids)
    while [ ${#pids[@]} -gt 0 ]; do
        kill -KILL "${pids[@]}" 2>/dev/null
        [ $SECONDS -lt $deadline ] || fail "these processes do not end: ${pids[*]}; $dir is left as it is"
        sleep 0.05
        mapfile -t pids < <(job_pids; daemon_pids)
    done
    rm -rf "$dir"
}

# The directory is its own lock; a new one after take_down is another lock.
make_locked_dir() {
    mkdir -p "$dir" || exit 1
    exec 9<"$dir"
    flock -w 60 9 || fail "$dir: another testbed.sh has been busy with it for 60 s"
}

is_testbed() { [ -f "$dir/testbed" ]; }

# Another directory's content is not ours to delete.
check_dir_is_ours() {
    is_testbed && return
    [ -z "$(ls -A "$dir" 2>/dev/null)" ] || fail "$dir has files that are not a testbed's: choose another --dir"
}

# ---- up ------------------------------------------------------------------------------------------

check_needs() {
    local missing=() name
    for name in munged:munge slurmctld:slurmctld slurmd:slurmd sinfo:slurm-client scontrol:slurm-client \
        flock:util-linux; do
        command -v "${name%%:*}" >/dev/null 2>&1 || missing+=("${name##*:}")
    done
    [ ${#missing[@]} -eq 0 ] ||
        fail "missing: $(printf '%s\n' "${missing[@]}" | sort -u | paste -sd' '); apt-get install slurm-wlm munge libpmix2"
    [ "$(id -u)" -eq 0 ] || fail "needs root: slurmd starts each job under its owner's name (sudo $0 up)"
    [ ${#dir} -le $LONGEST_DIR ] ||
        fail "$dir is ${#dir} bytes long and sockets below it need a name of at most $LONGEST_DIR: choose a shorter --dir"
    case $dir in *[!A-Za-z0-9/._+-]*) fail "$dir: Slurm's settings take letters, digits and /._+- only" ;; esac
}

# A port is taken when any socket of ours or others' has it as its local one.
is_port_taken() {
    local hex
    printf -v hex ':%04X' "$1"
    awk -v port="$hex" 'substr($2, length($2) - 4) == port { found = 1 } END { exit !found }' \
        /proc/net/tcp /proc/net/tcp6 2>/dev/null
}

choose_ports() { # sets base: base is slurmctld's, base + K node K's
    local try port
    for try in $(seq 100); do
        base=$((PORT_LOW + (RANDOM * 32768 + RANDOM) % (PORT_HIGH - PORT_LOW - nodes)))
        for ((port = base; port <= base + nodes; port++)); do
            is_port_taken $port && continue 2
        done
        return 0
    done
    fail "no $((nodes + 1)) free ports in a row between $PORT_LOW and $PORT_HIGH after $try tries"
}

write_settings() {
    local host k
    host=$(hostname -s 2>/dev/null) || host=$(hostname)
    cat >"$dir/slurm.conf" <<END
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$base
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its first start is void: 2 minutes unless told otherwise.
AuthInfo=socket=$dir/munge.sock,cred_expire=5
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdPidFile=$dir/run/%n.pid
SlurmdLogFile=$dir/log/%n.log
SlurmdSpoolDir=$dir/spool/%n
# With one directory for all nodes every PMIx step over several of them fails.
TmpFS=$dir/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/log/jobs
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=3
MinJobAge=300
JobRequeue=1
END
    for ((k = 1; k <= nodes; k++)); do
        echo "NodeName=n$k NodeHostname=$host NodeAddr=127.0.0.1 Port=$((base + k)) CPUs=$cpus RealMemory=1000"
        mkdir -p "$dir/spool/n$k" "$dir/tmp/n$k"
    done >>"$dir/slurm.conf"
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO" >>"$dir/slurm.conf"
    # PMIx's default fence crashes about 3 % of the starts with several nodes.
    echo "PMIxCollFence=tree" >"$dir/mpi.conf"
}

start_munge() {
    if [ ! -f "$dir/munge.key" ]; then
        (umask 077 && dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none) || return 1
    fi
    # --force: above DIR there may be directories that others can write to; the key itself is root's.
    munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/run/munged.pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/run/munged.seed" --num-threads=2 \
        >>"$dir/log/start.log" 2>&1 </dev/null 9<&-
}

start_daemons() {
    local k
    start_munge || return 1
    slurmctld -c -f "$dir/slurm.conf" >>"$dir/log/start.log" 2>&1 </dev/null 9<&- || return 1
    for ((k = 1; k <= nodes; k++)); do
        slurmd -c -N "n$k" -f "$dir/slurm.conf" >>"$dir/log/start.log" 2>&1 </dev/null 9<&- || return 1
    done
}

count_ready() { # nodes that would take a job now
    timeout 5 sinfo -h -N -o '%T' 2>/dev/null 9<&- | grep -cxE 'idle|mixed|allocated|completing' || true
}

wait_ready() {
    local deadline=$((SECONDS + READY_S))
    while [ "$(count_ready)" -ne "$nodes" ]; do
        [ $SECONDS -lt $deadline ] || return 1
        grep -qsE 'Address already in use' "$dir"/log/*.log && return 1
        sleep 0.1
    done
}

print_exports() {
    echo "export SLURM_CONF=$dir/slurm.conf"
    # All nodes are this machine, its jobs may be root's, and it has fewer cores than the nodes say.
    echo "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"
    echo "export OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo"
}

up() {
    local try began n_there tried_ports=""
    check_needs
    check_dir_is_ours
    dir=$(realpath -m -- "$dir")
    [ ${#dir} -le $LONGEST_DIR ] || fail "$dir: choose a shorter --dir ($LONGEST_DIR bytes at most)"
    make_locked_dir
    export SLURM_CONF=$dir/slurm.conf
    if is_testbed; then
        n_there=$(sed 's/^nodes=\([0-9]*\).*/\1/' "$dir/testbed")
        has_daemons "$n_there" || n_there=0
        if [ "$(cat "$dir/testbed")" = "nodes=$nodes cpus=$cpus" ] && [ "$n_there" -eq "$nodes" ] && wait_ready; then
            echo "testbed: is up already, with $nodes nodes; its state is in $dir" >&2
            print_exports
            return 0
        fi
        if [ "$n_there" -gt 0 ] && [ "$(cat "$dir/testbed")" != "nodes=$nodes cpus=$cpus" ]; then
            fail "a testbed ($(cat "$dir/testbed")) is up in $dir: take it down first, or choose another --dir"
        fi
        # What a crash or a reboot has left.
        take_down
        make_locked_dir
    fi
    began=$(date +%s%N)
    for try in $(seq $PORT_TRIES); do
        choose_ports
        mkdir -p "$dir/log" "$dir/run" "$dir/state"
        echo "nodes=$nodes cpus=$cpus" >"$dir/testbed"
        write_settings
        if start_daemons && wait_ready; then
            echo "testbed: $nodes nodes of $cpus CPUs are up after $((($(date +%s%N) - began) / 1000000)) ms;" \
                "state and logs are in $dir" >&2
            print_exports
            return 0
        fi
        grep -qsE 'Address already in use' "$dir"/log/*.log || break
        tried_ports="$tried_ports $base"
        take_down
        make_locked_dir
    done
    [ -z "$tried_ports" ] || echo "testbed: ports taken at the start:$tried_ports" >&2
    tail -n 5 "$dir"/log/*.log >&2 2>/dev/null
    take_down
    fail "does not come up: the ends of its logs are above"
}

down() {
    [ -d "$dir" ] || { echo "testbed: nothing is in $dir" >&2; return 0; }
    dir=$(cd "$dir" && pwd -P)
    check_dir_is_ours
    is_testbed || { rmdir "$dir"; return 0; }
    exec 9<"$dir"
    flock -w 60 9 || fail "$dir: another testbed.sh has been busy with it for 60 s"
    take_down
    echo "testbed: down" >&2
}

status() {
    [ -f "$dir/testbed" ] || fail "none is in $dir"
    dir=$(cd "$dir" && pwd -P)
    export SLURM_CONF=$dir/slurm.conf
    local n_ready n_wanted
    n_ready=$(count_ready)
    n_wanted=$(sed 's/^nodes=\([0-9]*\).*/\1/' "$dir/testbed")
    has_daemons "$n_wanted" || { echo "testbed: damaged: daemons have gone; up makes a new one in $dir"; return 1; }
    echo "testbed: $n_ready of $n_wanted nodes take jobs; state and logs are in $dir"
    [ "$n_ready" -gt 0 ] || return 1
    timeout 5 squeue
    [ "$n_ready" -eq "$n_wanted" ]
}

command=${1:-}
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
    case $1 in
        --nodes | --cpus | --dir)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
                --nodes) nodes=$2 ;;
                --cpus) cpus=$2 ;;
                --dir) dir=$2 ;;
            esac
            shift 2
            ;;
        -h | --help) usage; exit 0 ;;
        *) fail "what is '$1'? (up, down or status, with --nodes N, --cpus C, --dir DIR)" ;;
    esac
done
is_number "$nodes" 1 64 || fail "--nodes '$nodes': 1 to 64"
is_number "$cpus" 1 1024 || fail "--cpus '$cpus': 1 to 1024"
case $dir in /*) ;; *) dir=$PWD/$dir ;; esac
case $command in
    up) up ;;
    down) down ;;
    status) status ;;
    -h | --help | help) usage ;;
    '') usage >&2; exit 2 ;;
    *) fail "what is '$command'? (up, down or status)" ;;
esac
