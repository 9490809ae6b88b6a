"""The program of test_network_peer: every way in which a packet may leave a run, each tried at a port of its own."""

from __future__ import annotations

BASE_PORT = 20000
GROUP4, GROUP6 = "239.198.51.3", "ff05::5e03"

PROGRAM = """
import ctypes, mmap, os, socket, struct, sys
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM
at4, at6, fine4, fine6, device = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
WAYS = {}
port = 0

def way(act):
    WAYS[act.__name__] = act
    return act

kept = []

def made(family, kind, protocol=0):
    s = socket.socket(family, kind, protocol)
    s.settimeout(5)
    kept.append(s)  # or it would be closed under a bare descriptor
    return s

def address4(host=None, family=AF_INET):
    return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(host or at4) + bytes(8)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "")

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_char_p), ("size", ctypes.c_size_t)]

class Message(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("name_size", ctypes.c_uint32), ("vector", ctypes.POINTER(Vector)),
                ("vectors", ctypes.c_size_t), ("control", ctypes.c_char_p), ("control_size", ctypes.c_size_t), ("flags", ctypes.c_int)]

class Many(ctypes.Structure):
    _fields_ = [("message", Message), ("size", ctypes.c_uint32)]

def message(name):
    return Message(name, len(name), ctypes.pointer(Vector(b"x", 1)), 1, None, 0, 0)

@way
def tcp(): made(AF_INET, SOCK_STREAM).connect((at4, port))
@way
def tcp6(): made(AF_INET6, SOCK_STREAM).connect((at6, port))
@way
def tcp_mapped(): made(AF_INET6, SOCK_STREAM).connect(("::ffff:" + at4, port))
@way
def tcp_nonblocking():
    s = made(AF_INET, SOCK_STREAM)
    s.setblocking(False)
    try: s.connect((at4, port))
    except BlockingIOError: pass
@way
def fastopen():
    s = made(AF_INET, SOCK_STREAM)
    s.setblocking(True)
    s.sendto(b"x", 0x20000000, (at4, port))
@way
def fastopen6():
    s = made(AF_INET6, SOCK_STREAM)
    s.setblocking(True)
    s.sendto(b"x", 0x20000000, (at6, port))
@way
def fastopen_connect():
    s = made(AF_INET, SOCK_STREAM)
    s.setsockopt(socket.IPPROTO_TCP, 30, 1)
    s.connect((at4, port))
    s.send(b"x")
@way
def tcp_bound():
    s = made(AF_INET, SOCK_STREAM)
    s.bind(("0.0.0.0", 0))
    s.connect((at4, port))
@way
def tcp_port():
    s = made(AF_INET, SOCK_STREAM)
    s.bind(("0.0.0.0", port))
    s.connect((at4, port))
@way
def tcp_device():
    s = made(AF_INET, SOCK_STREAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    s.connect((at4, port))
@way
def tcp_again():
    s = made(AF_INET, SOCK_STREAM)
    try: s.connect((fine4, 1))
    except OSError: pass
    check(libc.connect(s.fileno(), bytes(16), 16))
    s.connect((at4, port))
@way
def mptcp(): made(AF_INET, SOCK_STREAM, 262).connect((at4, port))
@way
def mptcp6(): made(AF_INET6, SOCK_STREAM, 262).connect((at6, port))
@way
def mptcp_fastopen():
    s = made(AF_INET, SOCK_STREAM, 262)
    s.setblocking(True)
    s.sendto(b"x", 0x20000000, (at4, port))
@way
def udp(): made(AF_INET, SOCK_DGRAM).sendto(b"x", (at4, port))
@way
def udp6(): made(AF_INET6, SOCK_DGRAM).sendto(b"x", (at6, port))
@way
def udp_mapped(): made(AF_INET6, SOCK_DGRAM).sendto(b"x", ("::ffff:" + at4, port))
@way
def udp6_plain(): check(libc.sendto(made(AF_INET6, SOCK_DGRAM).fileno(), b"x", 1, 0, address4(), 16))
@way
def udp6_plain_connect():
    s = made(AF_INET6, SOCK_DGRAM)
    check(libc.connect(s.fileno(), address4(), 16))
    s.send(b"x")
@way
def udp_unspec(): check(libc.sendto(made(AF_INET, SOCK_DGRAM).fileno(), b"x", 1, 0, address4(family=0), 16))
@way
def udp_connect():
    s = made(AF_INET, SOCK_DGRAM)
    s.connect((at4, port))
    s.send(b"x")
@way
def udp6_connect():
    s = made(AF_INET6, SOCK_DGRAM)
    s.connect((at6, port))
    s.send(b"x")
@way
def udp_connected_elsewhere():
    s = made(AF_INET, SOCK_DGRAM)
    s.connect((fine4, 1))
    s.sendto(b"x", (at4, port))
@way
def udp_corked():
    s = made(AF_INET, SOCK_DGRAM)
    s.sendto(b"x", socket.MSG_MORE, (at4, port))
    s.sendto(b"x", (at4, port))
@way
def udp_port():
    s = made(AF_INET, SOCK_DGRAM)
    s.bind(("0.0.0.0", port))
    s.sendto(b"x", (at4, port))
@way
def udp_device():
    s = made(AF_INET, SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    s.sendto(b"x", (at4, port))
@way
def udp_interface():
    s = made(AF_INET, SOCK_DGRAM)
    s.sendmsg([b"x"], [(socket.IPPROTO_IP, 8, struct.pack("=I8x", socket.if_nametoindex(device)))], 0, (at4, port))
@way
def udp_segments():
    s = made(AF_INET, SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_UDP, 103, 8)
    s.sendto(b"x" * 32, (at4, port))
@way
def sendmsg(): made(AF_INET, SOCK_DGRAM).sendmsg([b"x"], [], 0, (at4, port))
@way
def sendmsg6(): made(AF_INET6, SOCK_DGRAM).sendmsg([b"x"], [], 0, (at6, port))
@way
def sendmmsg():
    many = (Many * 2)(Many(message(address4())), Many(message(address4())))
    check(libc.sendmmsg(made(AF_INET, SOCK_DGRAM).fileno(), many, 2, 0))
@way
def udplite(): made(AF_INET, SOCK_DGRAM, 136).sendto(b"x", (at4, port))
@way
def udplite6(): made(AF_INET6, SOCK_DGRAM, 136).sendto(b"x", (at6, port))
@way
def udplite_connect():
    s = made(AF_INET, SOCK_DGRAM, 136)
    s.connect((at4, port))
    s.send(b"x")
@way
def ping(): made(AF_INET, SOCK_DGRAM, socket.IPPROTO_ICMP).sendto(b"\\x08\\0\\0\\0\\0\\0\\0\\1", (at4, 0))
@way
def ping6(): made(AF_INET6, SOCK_DGRAM, socket.IPPROTO_ICMPV6).sendto(b"\\x80\\0\\0\\0\\0\\0\\0\\1", (at6, 0))
@way
def raw(): made(AF_INET, SOCK_RAW, 200).sendto(b"x", (at4, 0))
@way
def raw_header():
    s = made(AF_INET, SOCK_RAW, 255)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
    s.sendto(b"\\x45" + bytes(8) + b"\\xc9" + bytes(6) + socket.inet_aton(at4), (at4, 0))
@way
def packet():
    s = made(17, SOCK_RAW, 0x0800)
    s.bind((device, 0x0800))
    s.send(b"\\xff" * 6 + bytes(6) + b"\\x08\\0\\x45" + bytes(8) + b"\\xc8" + bytes(6) + socket.inet_aton(at4))
@way
def transparent():
    s = made(AF_INET, SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, 19, 1)
    s.sendto(b"x", (at4, port))

def ring(opcode, fd, off, at, size):
    params = ctypes.create_string_buffer(120)
    ring_fd = libc.syscall(425, 4, params)
    check(ring_fd)
    word = lambda n: struct.unpack_from("=I", params.raw, n)[0]
    rings = mmap.mmap(ring_fd, max(word(64) + 4 * word(0), word(100) + 16 * word(4)))
    entries = mmap.mmap(ring_fd, 64 * word(0), offset=0x10000000)
    entries[:32] = struct.pack("=BBHiQQII", opcode, 0, 0, fd, off, at, size, 0)
    struct.pack_into("=I", rings, word(64), 0)
    struct.pack_into("=I", rings, word(44), 1)
    check(libc.syscall(426, ring_fd, 1, 1, 1, None, 0))
    result = struct.unpack_from("=i", rings, word(100) + 8)[0]
    os.close(ring_fd)
    if result < 0:
        raise OSError(-result, "")

@way
def ring_connect():
    name = ctypes.create_string_buffer(address4(), 16)
    s = made(AF_INET, SOCK_STREAM)
    s.setblocking(True)
    ring(16, s.fileno(), 16, ctypes.addressof(name), 0)
@way
def ring_sendmsg():
    one = message(address4())
    ring(9, made(AF_INET, SOCK_DGRAM).fileno(), 0, ctypes.addressof(one), 1)

# The packet goes to the first hop, though its caller named another.
def route4(): return b"\\x83\\x07\\x04" + socket.inet_aton(at4) + b"\\x00"
def strict4(): return b"\\x89\\x07\\x04" + socket.inet_aton(at4) + b"\\x00"
def segments6():
    return struct.pack("=BBBBBBH", 0, 4, 4, 1, 1, 0, 0) + socket.inet_pton(AF_INET6, "::") + socket.inet_pton(AF_INET6, at6)
@way
def tcp_routed():
    s = made(AF_INET, SOCK_STREAM)
    s.settimeout(0.2)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route4())
    s.connect((fine4, port))
@way
def udp_routed():
    s = made(AF_INET, SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route4())
    s.sendto(b"x", (fine4, port))
@way
def udp_routed_strictly():
    s = made(AF_INET, SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, strict4())
    s.sendto(b"x", (fine4, port))
@way
def udp_routed_once(): made(AF_INET, SOCK_DGRAM).sendmsg([b"x"], [(socket.IPPROTO_IP, 7, route4())], 0, (fine4, port))
@way
def udp_routed_later():
    s = made(AF_INET, SOCK_DGRAM)
    s.connect((fine4, port))
    s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, route4())
    s.send(b"x")
@way
def udp6_routed():
    s = made(AF_INET6, SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, 57, segments6())
    s.sendto(b"x", (fine6, port))
@way
def udp6_routed_once(): made(AF_INET6, SOCK_DGRAM).sendmsg([b"x"], [(socket.IPPROTO_IPV6, 57, segments6())], 0, (fine6, port))
@way
def udp6_routed_later():
    s = made(AF_INET6, SOCK_DGRAM)
    s.connect((fine6, port))
    s.setsockopt(socket.IPPROTO_IPV6, 57, segments6())
    s.send(b"x")
@way
def tcp6_routed():
    s = made(AF_INET6, SOCK_STREAM)
    s.settimeout(0.2)
    s.setsockopt(socket.IPPROTO_IPV6, 57, segments6())
    s.connect((fine6, port))
@way
def join(): made(AF_INET, SOCK_DGRAM).setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
    socket.inet_aton("GROUP4") + bytes(4) + struct.pack("=I", socket.if_nametoindex(device)))
@way
def join6(): made(AF_INET6, SOCK_DGRAM).setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
    socket.inet_pton(AF_INET6, "GROUP6") + struct.pack("=I", socket.if_nametoindex(device)))

for number, (name, act) in enumerate(WAYS.items()):
    port = BASE_PORT + number
    try:
        act()
        print(name, "done")
    except OSError as error:
        print(name, error.errno or type(error).__name__)
    while kept:
        kept.pop().close()
"""
PROGRAM = PROGRAM.replace("GROUP4", GROUP4).replace("GROUP6", GROUP6).replace("BASE_PORT", str(BASE_PORT))

WAYS: list[str] = [
    line.removeprefix("def ").partition("(")[0]
    for before, line in zip(PROGRAM.splitlines(), PROGRAM.splitlines()[1:], strict=False)
    if before == "@way"
]
