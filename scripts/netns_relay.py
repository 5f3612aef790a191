#!/usr/bin/python3
"""A switch in user space whose frames arrive later: what netem does, for kernels that have none.

    netns_relay.py DELAY_MS PID_FILE NAMESPACE...

Makes a TAP device net0 in every namespace and goes to the background when all of them are there. A frame is handed to
the namespace that owns its destination address (to all others while nobody is known to) DELAY_MS after it was read.
netns_hosts.sh starts and ends it.
"""
import collections
import ctypes
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x40000000
FRAME_BYTES = 65536
LIMIT = 100_000  # frames under way; more are dropped, as a full queue does
libc = ctypes.CDLL(None, use_errno=True)


def open_tap(namespace):
    """A TAP belongs to the namespace in which its descriptor was opened."""
    with open(f"/run/netns/{namespace}", "rb") as place:
        if libc.setns(place.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter namespace {namespace}")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"net0", IFF_TAP | IFF_NO_PI))
    return fd


def to_background(pid_file):
    child = os.fork()
    if child:
        with open(pid_file, "w", encoding="ascii") as out:
            out.write(f"{child}\n")
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    try:  # a frame must not wait for a core longer than for its time; there is little to do for each
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError:
        pass


class Switch:
    def __init__(self, taps, delay_s):
        self.taps, self.delay_s = taps, delay_s
        self.owners = {}  # hardware address -> tap
        self.under_way = collections.deque()  # (when due, from, frame); the delay is the same for all: in order

    def take(self, tap):
        while True:
            try:
                frame = os.read(tap, FRAME_BYTES)
            except OSError:  # read empty, or its device is still down
                return
            self.owners[frame[6:12]] = tap
            if len(self.under_way) < LIMIT:
                self.under_way.append((time.monotonic() + self.delay_s, tap, frame))

    def hand_over(self):
        while self.under_way and self.under_way[0][0] <= time.monotonic():
            _, source, frame = self.under_way.popleft()
            owner = self.owners.get(frame[:6])
            for tap in self.taps if owner is None else [owner]:
                if tap != source:
                    try:
                        os.write(tap, frame)
                    except OSError:  # its device is down, or its queue full: lost, as on a wire
                        pass

    def run(self):
        while True:
            wait = max(0.0, self.under_way[0][0] - time.monotonic()) if self.under_way else None
            for tap in select.select(self.taps, [], [], wait)[0]:
                self.take(tap)
            self.hand_over()


def main():
    delay_ms, pid_file, namespaces = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    try:
        taps = [open_tap(namespace) for namespace in namespaces]
    except OSError as e:
        sys.exit(f"netns_relay: {e}: this needs /dev/net/tun (CONFIG_TUN)")
    to_background(pid_file)
    Switch(taps, delay_ms / 1e3).run()


if __name__ == "__main__":
    main()
