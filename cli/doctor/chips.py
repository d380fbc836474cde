"""Look up what each chip needs of the machine and its kernel, in `chips.yaml`."""

import functools
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field

TABLE = Path(__file__).with_name("chips.yaml")


class Chip(BaseModel):
    """One chip that computes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(description="What people call it.")
    vendor: str = Field(pattern=r"^0x[0-9a-f]{4}$", description="PCI vendor.")
    device: str = Field(pattern=r"^0x[0-9a-f]{4}$", description="PCI device.")
    kernel: str = Field(pattern=r"^\d+(\.\d+)+$", description="The oldest kernel it works with.")
    firmware: str = Field(description="Folder below /lib/firmware that its driver loads from.")
    firmware_package: str = Field(description="Debian package that has those files.")
    kernel_line: dict[str, str] = Field(default={}, description="Kernel parameters that give it to a driver, by name.")
    compiler_target: str | None = Field(default=None, description="Its name in the vendor's ahead-of-time compiler.")
    source: str = Field(pattern=r"^https://", description="Where the oldest kernel is said.")


class ChipTable(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    vendors: dict[str, str] = Field(description="PCI vendor by kind of accelerator.")
    chips: list[Chip] = Field(description="What is known of chips.")


@functools.cache
def table() -> ChipTable:
    """Return the file's content."""
    return ChipTable.model_validate(yaml.safe_load(TABLE.read_text(encoding="utf-8")))


def find_chip(vendor: str | None, device: str | None) -> Chip | None:
    """Return the chip with these PCI ids, or None when it is not in the table."""
    return next((chip for chip in table().chips if (chip.vendor, chip.device) == (vendor, device)), None)


def version_of(text: str) -> tuple[int, ...]:
    """Return the numbers that a kernel's release begins with: (6, 12, 48) of 6.12.48+deb13-amd64."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()
