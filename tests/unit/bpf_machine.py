"""A classic BPF interpreter, as far as seccomp uses it: what a filter says, without a kernel."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_INSTRUCTION = struct.Struct("=HBBI")
_DATA = struct.Struct("=iIQ6Q")
_MASK = 0xFFFFFFFF


class Machine:
    """Runs one filter; `walked` counts the instructions of the last run."""

    def __init__(self, program: bytes) -> None:
        self.instructions = list(_INSTRUCTION.iter_unpack(program))
        self.walked = 0

    def run(self, nr: int, args: Sequence[int] = (), arch: int = 0xC000003E) -> int:
        """The filter's answer (a SECCOMP_RET_* value with its data) to one system call."""
        signed = nr - 2**32 if nr >= 2**31 else nr
        data = _DATA.pack(signed, arch, 0, *(a & 2**64 - 1 for a in (*args, *[0] * (6 - len(args)))))
        a = x = pc = self.walked = 0
        memory = [0] * 16
        while True:
            code, jt, jf, k = self.instructions[pc]
            self.walked += 1
            pc += 1
            match code & 0x07:
                case 0x00:  # LD
                    mode = code & 0xE0
                    if mode == 0x20:
                        assert k % 4 == 0 and k + 4 <= len(data)
                        (a,) = struct.unpack_from("=I", data, k)
                    elif mode == 0x60:
                        a = memory[k]
                    else:
                        assert mode == 0x00
                        a = k
                case 0x01:  # LDX
                    x = memory[k] if code & 0xE0 == 0x60 else k
                case 0x02:
                    memory[k] = a
                case 0x03:
                    memory[k] = x
                case 0x04:  # ALU
                    operand = x if code & 0x08 else k
                    match code & 0xF0:
                        case 0x00:
                            a = (a + operand) & _MASK
                        case 0x10:
                            a = (a - operand) & _MASK
                        case 0x40:
                            a |= operand
                        case 0x50:
                            a &= operand
                        case 0xA0:
                            a ^= operand
                        case other:
                            raise AssertionError(f"ALU {other:#x}")
                case 0x05:  # JMP
                    operand = x if code & 0x08 else k
                    match code & 0xF0:
                        case 0x00:
                            pc += k
                            continue
                        case 0x10:
                            taken = a == operand
                        case 0x20:
                            taken = a > operand
                        case 0x30:
                            taken = a >= operand
                        case 0x40:
                            taken = bool(a & operand)
                        case other:
                            raise AssertionError(f"JMP {other:#x}")
                    pc += jt if taken else jf
                case 0x06:
                    assert not code & 0x18, "returns a constant"
                    return int(k)
                case 0x07:
                    if code & 0x80:
                        a = x
                    else:
                        x = a
