#!/usr/bin/env bash
# Several hosts on one machine: network namespaces on one network, each with a name, an address and a hostname of its
# own, and mpirun across them without sshd. Needs root, iproute2 and util-linux.
#
#   scripts/netns_hosts.sh up N [--delay MS] [--rate MBIT]   N hosts NAME-1..NAME-N at 10.77.0.1..N
#   scripts/netns_hosts.sh exec HOST COMMAND...              runs COMMAND there; HOST is 1..N or its name
#   scripts/netns_hosts.sh mpirun ARGUMENTS...               mpirun on host 1, ranks over the hosts in turn
#   scripts/netns_hosts.sh status                            hosts, addresses, what delays and limits
#   scripts/netns_hosts.sh down                              ends what runs there and leaves nothing
#
# --name NAME (first argument, or NETNS_NAME) tells several such networks apart; default carousel. Nothing of them
# reaches the machine's own network, so all of them use the same addresses.
# --delay: every packet between two hosts arrives MS milliseconds later; by netem, or where the kernel has none by
# scripts/netns_relay.py, a switch in user space. --rate: a host sends at most MBIT megabits a second (netem or tbf).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
self=$here/netns_hosts.sh
name=${NETNS_NAME:-carousel}
network=10.77.0
net_mask=24

fail() { echo "netns_hosts: $1" >&2; exit "${2:-1}"; }
usage() { sed -n '2,15s/^# \{0,1\}//p' "$self"; exit "${1:-2}"; }
is_number() { [[ $1 =~ ^[0-9]{1,6}(\.[0-9]{1,6})?$ ]]; }
is_between() { [[ $3 =~ ^[0-9]{1,4}$ ]] && [ "$3" -ge "$1" ] && [ "$3" -le "$2" ]; } # least, most, text

# ---- the hosts --------------------------------------------------------------------------------------------------

state() { echo "/run/carousel-netns/$name"; }
n_hosts() { cat "$(state)/n_hosts" 2>/dev/null || fail "there is no network '$name': scripts/netns_hosts.sh --name $name up N"; }

host_name() { # 2 or carousel-2
    local number=${1#"$name"-} n
    n=$(n_hosts) || exit
    is_between 1 "$n" "$number" || fail "there is no host '$1'; there are $name-1 to $name-$n" 2
    echo "$name-$number"
}

enter() { # host name, command...
    local host=$1
    shift
    # shellcheck disable=SC2016  # the inner shell's own words
    exec ip netns exec "$host" unshare --uts \
        sh -c 'echo "$0" >/proc/sys/kernel/hostname && exec "$@"' "$host" "$@"
}

namespaces() { # those with names as ours have
    local host
    for host in $(ip netns list | awk '{ print $1 }'); do
        [[ ! $host =~ ^"$name"-([0-9]+|switch)$ ]] || echo "$host"
    done
}

has_netem() { tc -n "$name-switch" qdisc add dev lo root netem delay 1ms 2>/dev/null &&
    tc -n "$name-switch" qdisc del dev lo root; }

add_host() { # number; with a device net0 in it, or one that is made here
    local host=$name-$1
    if [ ! -e "$(state)/relay.pid" ]; then
        ip link add net0 netns "$host" type veth peer name "port$1" netns "$name-switch"
        ip -n "$name-switch" link set "port$1" master switch up
    fi
    ip -n "$host" address add "$network.$1/$net_mask" dev net0
    ip -n "$host" link set lo up
    ip -n "$host" link set net0 up
}

shape_host() { # number, delay in ms that netem adds or 0, rate in Mbit or 0
    local host=$name-$1 delay=$2 rate=$3 limited=()
    if [ "$delay" != 0 ]; then
        [ "$rate" = 0 ] || limited=(rate "${rate}mbit")
        tc -n "$host" qdisc add dev net0 root netem delay "${delay}ms" limit 100000 "${limited[@]}"
    elif [ "$rate" != 0 ]; then
        tc -n "$host" qdisc add dev net0 root tbf rate "${rate}mbit" burst 32kb latency 400ms
    fi
}

up() {
    local n=${1:-} delay=0 rate=0 by=nothing i
    is_between 1 200 "$n" || fail "up N: N is 1 to 200, found '$n'" 2
    shift
    while [ $# -gt 0 ]; do
        case $1 in --delay | --rate) ;; *) fail "unknown option '$1'; there are --delay MS and --rate MBIT" 2 ;; esac
        is_number "${2:-}" || fail "$1 needs a number, found '${2:-}'" 2
        if [ "$1" = --delay ]; then delay=$2; else rate=$2; fi
        shift 2
    done
    [ -e "$(state)" ] || [ -z "$(namespaces)" ] ||
        fail "somebody else's namespaces have such names: $(namespaces | tr '\n' ' '); use --name for other ones"
    mkdir -p /run/carousel-netns
    mkdir "$(state)" 2>/dev/null ||
        fail "the network '$name' is up already; take it down first, or use --name for another one"
    mkdir "$(state)/tmp"
    echo "$n" >"$(state)/n_hosts"
    trap 'down >/dev/null 2>&1' EXIT
    ip netns add "$name-switch"
    local hosts="127.0.0.1 localhost" names=()
    for ((i = 1; i <= n; i++)); do
        ip netns add "$name-$i"
        names+=("$name-$i")
        hosts+=$'\n'"$network.$i $name-$i"
    done
    for ((i = 1; i <= n; i++)); do
        mkdir -p "/etc/netns/$name-$i"
        echo "$hosts" >"/etc/netns/$name-$i/hosts"
    done
    local netem=0
    if [ "$delay" != 0 ] && has_netem; then
        by=netem netem=$delay
    elif [ "$delay" != 0 ]; then
        by=relay
        "$here/netns_relay.py" "$delay" "$(state)/relay.pid" "${names[@]}" || fail "the relay did not start"
    fi
    if [ $by != relay ]; then
        ip -n "$name-switch" link add switch type bridge forward_delay 0
        ip -n "$name-switch" link set switch up
    fi
    for ((i = 1; i <= n; i++)); do
        add_host "$i"
        shape_host "$i" "$netem" "$rate"
    done
    echo "delay_ms=$delay delay_by=$by rate_mbit=$rate" >"$(state)/link"
    trap - EXIT
    status
}

status() {
    local n i
    n=$(n_hosts) || exit
    for ((i = 1; i <= n; i++)); do echo "$name-$i $network.$i"; done
    cat "$(state)/link"
}

end_processes() { # signal, namespaces...
    local signal=$1 host pids
    shift
    for host in "$@"; do
        pids=$(ip netns pids "$host" 2>/dev/null) || continue
        # shellcheck disable=SC2086  # many numbers
        [ -z "$pids" ] || kill -s "$signal" $pids 2>/dev/null || true
    done
}

running() { local host; for host in "$@"; do ip netns pids "$host" 2>/dev/null || true; done; }

down() {
    local all=() host pid
    # Without it namespaces of such names are somebody else's, and so is what runs in them.
    [ -e "$(state)" ] || return 0
    mapfile -t all < <(namespaces)
    end_processes TERM "${all[@]}"
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -n "$(running "${all[@]}")" ] || break
        sleep 0.1
    done
    end_processes KILL "${all[@]}"
    if pid=$(cat "$(state)/relay.pid" 2>/dev/null) && grep -qs netns_relay.py "/proc/$pid/cmdline"; then
        kill "$pid" || true
    fi
    for host in "${all[@]}"; do
        ip netns delete "$host"
        rm -rf "/etc/netns/$host"
    done
    rmdir /etc/netns 2>/dev/null || true
    rm -rf "$(state)"
    rmdir /run/carousel-netns 2>/dev/null || true
}

# ---- mpirun -----------------------------------------------------------------------------------------------------

# What mpirun calls instead of ssh: options, a host, a command line for its shell.
agent() {
    while [[ ${1:-} == -* ]]; do shift; done
    local host=$1
    shift
    enter "$host" sh -c "$*"
}

across() {
    local n i hosts=""
    n=$(n_hosts) || exit
    for ((i = 1; i <= n; i++)); do hosts+="${hosts:+,}$name-$i:1"; done
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent="$self --name $name agent" OMPI_MCA_plm_rsh_no_tree_spawn=1
    export OMPI_MCA_ras="^slurm,gridengine" OMPI_MCA_orte_keep_fqdn_hostnames=1
    export OMPI_MCA_btl_tcp_if_include=$network.0/$net_mask OMPI_MCA_oob_tcp_if_include=$network.0/$net_mask
    OMPI_MCA_orte_tmpdir_base=$(state)/tmp
    export OMPI_MCA_orte_tmpdir_base
    enter "$name-1" mpirun --host "$hosts" --map-by node --oversubscribe --bind-to none "$@"
}

if [ "${1:-}" = --name ]; then
    name=${2:-}
    shift; shift || true
fi
[[ $name =~ ^[a-z][a-z0-9_-]{0,30}$ ]] || fail "a name is small letters, digits, - and _, at most 31; found '$name'" 2
case ${1:-} in
up | down | exec | mpirun | status | agent) ;;
-h | --help) usage 0 ;;
'') usage ;;
*) fail "there is no '$1'; there are up, exec, mpirun, status, down" 2 ;;
esac
[ "$(id -u)" -eq 0 ] || fail "network namespaces need root; run it with sudo"
for tool in ip tc unshare; do
    command -v $tool >/dev/null || fail "$tool is not on PATH; install iproute2 and util-linux"
done
what=$1
shift
case $what in
up) up "$@" ;;
down) down ;;
status) status ;;
agent) agent "$@" ;;
mpirun)
    [ $# -gt 0 ] || fail "mpirun needs its arguments: mpirun -n 4 build/carousel ..." 2
    across "$@" ;;
exec)
    [ $# -ge 2 ] || fail "exec HOST COMMAND..." 2
    host=$(host_name "$1") || exit
    shift
    enter "$host" "$@" ;;
esac
