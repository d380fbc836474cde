"""Name the machines that ask to boot by the architecture number of their DHCP request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# IANA's registry "Processor Architecture Types" (RFC 5970, section 4; RFC 4578 for the first ones). 9 is EFI byte code
# there, and what much 64-bit firmware says of itself.
ARCHITECTURES: Final[Mapping[int, str]] = {
    0: "BIOS",
    1: "NEC PC-98",
    2: "UEFI Itanium",
    3: "DEC Alpha",
    4: "Arc x86",
    5: "Intel Lean Client",
    6: "UEFI x86",
    7: "UEFI x86-64",
    8: "EFI XScale",
    9: "UEFI x86-64",
    10: "UEFI arm",
    11: "UEFI arm64",
    12: "PowerPC Open Firmware",
    13: "PowerPC ePAPR",
    14: "POWER OPAL v3",
    15: "UEFI x86 over HTTP",
    16: "UEFI x86-64 over HTTP",
    17: "EFI byte code over HTTP",
    18: "UEFI arm over HTTP",
    19: "UEFI arm64 over HTTP",
    20: "BIOS over HTTP",
    21: "U-Boot arm",
    22: "U-Boot arm64",
    23: "U-Boot arm over HTTP",
    24: "U-Boot arm64 over HTTP",
    25: "UEFI RISC-V 32",
    26: "UEFI RISC-V 32 over HTTP",
    27: "UEFI RISC-V 64",
    28: "UEFI RISC-V 64 over HTTP",
    29: "UEFI RISC-V 128",
    30: "UEFI RISC-V 128 over HTTP",
    31: "s390 Basic",
    32: "s390 Extended",
    33: "UEFI MIPS 32",
    34: "UEFI MIPS 64",
    35: "UEFI Sunway 32",
    36: "UEFI Sunway 64",
    37: "UEFI LoongArch 32",
    38: "UEFI LoongArch 32 over HTTP",
    39: "UEFI LoongArch 64",
    40: "UEFI LoongArch 64 over HTTP",
    41: "Raspberry Pi (arm rpiboot)",
}
# What there is an iPXE for.
SUPPORTED: Final = ("BIOS", "UEFI x86-64")
_OVER_HTTP: Final = " over HTTP"
_CODE: Final = re.compile(r"Arch:(\d{5})")


def architecture(vendor_class: str) -> str:
    """Return the name in a vendor class such as `PXEClient:Arch:00007:UNDI:003016`; empty when it has no number."""
    code = _CODE.search(vendor_class)
    return ARCHITECTURES.get(int(code[1]), f"architecture {int(code[1])}") if code else ""


def unsupported(name: str) -> str:
    """Return why a machine of an architecture cannot be booted from here, and what helps; empty when it can."""
    if not name or name in SUPPORTED:
        return ""
    if name.removesuffix(_OVER_HTTP) in SUPPORTED:
        return f"its firmware asks for {name}; here it can load by TFTP: set it to PXE boot instead of HTTP boot"
    return f"its firmware asks for {name}; there is iPXE for {' and '.join(SUPPORTED)}"
