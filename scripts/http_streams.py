"""Many HTTP streams from one thread, as cheap as Python can: raw sockets, epoll, bytes counted rather than parsed.

A Stream sends one request and follows its answer; Loop turns them all. Nothing but the status line, the marks of events
and the end is looked at, so that the client stays out of the way of the server that it measures.
"""
import array
import json
import select
import socket
import struct
import time
import urllib.request

EVENT = b"\ndata: "
DONE = b"data: [DONE]\n\n"
FAULT = b'data: {"error"'
END = b"\r\n0\r\n\r\n"


def request_bytes(host, path, body, key=None):
    body = json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


class Stream:
    """One request on one connection. leave_after: None, or after how many events the client leaves (0: at once). is_whole:
    the answer is no stream, and is done when as much has come as its head says."""

    def __init__(self, request, leave_after=None, is_reset=False, is_whole=False):
        self.request, self.leave_after, self.is_reset, self.is_whole = request, leave_after, is_reset, is_whole
        self.socket = None
        self.sent = 0
        self.began = self.first = self.last = 0.0
        self.n_events = 0
        self.tail = b""  # the end of what has come, in which a mark may have begun
        self.head = b""
        self.failure = None  # what went wrong, in words
        self.is_done = False


class Loop:
    """Turns streams; on_end(stream) is called when one has ended, left or failed, and gets the next one going."""

    def __init__(self, host, port, on_end):
        self.address, self.on_end = (host, port), on_end
        self.epoll = select.epoll()
        self.streams = {}
        self.ttft, self.itl = array.array("f"), array.array("f")

    def start(self, stream, connection=None):
        """On a connection that an earlier stream left open, or a new one."""
        stream.began = time.monotonic()
        if connection is None:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setblocking(False)
            connection.connect_ex(self.address)
        stream.socket = connection
        self.streams[connection.fileno()] = stream
        self.epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def turn(self, timeout):
        for fd, _ in self.epoll.poll(timeout):
            stream = self.streams.get(fd)
            if stream is None:
                continue
            try:
                if stream.sent < len(stream.request):
                    self.write(fd, stream)
                else:
                    self.read(fd, stream)
            except BlockingIOError:
                pass
            except OSError as e:
                self.fail(fd, stream, f"{type(e).__name__} after {stream.n_events} events")

    def write(self, fd, stream):
        stream.sent += stream.socket.send(stream.request[stream.sent:])
        if stream.sent == len(stream.request):
            self.epoll.modify(fd, select.EPOLLIN)
            if stream.leave_after == 0:
                self.leave(fd, stream)

    def read(self, fd, stream):
        data = stream.socket.recv(262144)
        now = time.monotonic()
        if not data:
            self.fail(fd, stream, f"the connection ended after {stream.n_events} events: {stream.head[:120]!r}")
            return
        if len(stream.head) < 12:
            stream.head += data[:400]
            if len(stream.head) >= 12 and not stream.head.startswith(b"HTTP/1.1 200"):
                self.fail(fd, stream, stream.head.replace(b"\r\n\r\n", b"\r\n").split(b"\r\n")[0].decode("latin-1"))
                return
        whole = stream.tail + data
        if stream.is_whole:
            stream.tail = whole
            head, mark, body = whole.partition(b"\r\n\r\n")
            if mark and len(body) >= int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]):
                stream.is_done = True
                self.end(fd, stream)
            return
        n = whole.count(EVENT) - stream.tail.count(EVENT)
        if n:
            if stream.n_events == 0:
                stream.first = now
                self.ttft.append(now - stream.began)
            else:
                self.itl.append((now - stream.last) / n)
            stream.last = now
            stream.n_events += n
        if FAULT in whole:
            self.fail(fd, stream, whole[whole.index(FAULT):][:200].decode("latin-1"))
        elif whole.endswith(END) and DONE in whole:
            stream.is_done = True
            self.end(fd, stream)
        elif stream.leave_after is not None and stream.n_events >= stream.leave_after:
            self.leave(fd, stream)
        else:
            stream.tail = whole[-64:]

    def end(self, fd, stream):
        self.epoll.unregister(fd)
        del self.streams[fd]
        self.on_end(stream)

    def leave(self, fd, stream):
        if stream.is_reset:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.end_closed(fd, stream)

    def fail(self, fd, stream, why):
        stream.failure = why
        self.end_closed(fd, stream)

    def end_closed(self, fd, stream):
        self.epoll.unregister(fd)
        del self.streams[fd]
        stream.socket.close()
        stream.socket = None
        self.on_end(stream)

    def close(self):
        for fd, stream in list(self.streams.items()):
            stream.is_reset = False
            self.epoll.unregister(fd)
            stream.socket.close()
        self.streams.clear()


def quantile(values, q):
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class Samples:
    """A server's /metrics at one moment."""

    def __init__(self, url, key=None):
        request = urllib.request.Request(url + "/metrics")
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            self.values = {}
            for line in answer.read().decode().splitlines():
                if line and not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    self.values[name] = float(value)

    def sum(self, name):
        return sum(v for k, v in self.values.items() if k.split("{")[0] == name)

    def max(self, name):
        return max((v for k, v in self.values.items() if k.split("{")[0] == name), default=0.0)

    def is_idle(self):
        return (self.sum("carousel_num_requests_running") == 0 and self.sum("carousel_num_requests_waiting") == 0
                and self.max("carousel_kv_cache_usage_ratio") == 0)


def histogram_quantile(before, after, name, q):
    """Of what a histogram has gained between two samples, as Prometheus' function of that name; (value, upper edge)."""
    buckets = {}
    for key, value in after.values.items():
        if key.startswith(name + "_bucket{"):
            edge = float(key.split('le="')[1].split('"')[0])
            buckets[edge] = buckets.get(edge, 0) + value - before.values.get(key, 0)
    total, low, below = max(buckets.values(), default=0), 0.0, 0
    for edge in sorted(buckets):
        if total and buckets[edge] >= q * total:
            if edge == float("inf"):
                return low, edge
            inside = buckets[edge] - below
            return low + (edge - low) * ((q * total - below) / inside if inside else 1), edge
        low, below = edge, buckets[edge]
    return None, None
