"""Types of one value of a profile: names, addresses, quantities with their unit.

The sections of a profile are made of these (`types`, `machine_types`). A
message says what was seen and what was expected; where it stands is added later.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from bottleneck.units import DURATION, FREQUENCY, RATE, SIZE, Dimension, shown

DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class Section(BaseModel):
    """A mapping of the profile. Unknown keys are errors, and values are not guessed at."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


def _host_name(text: str) -> str:
    if DNS_LABEL.fullmatch(text):
        return text
    mended = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")[:63]
    hint = f", such as {mended}" if mended else ""
    label = "; the name people use may stand beside it as `label`" if "_" in text else ""
    raise ValueError(f"{shown(text)}; expected a DNS label of letters, digits and inner hyphens{hint}{label}")


def name_text(text: str) -> str:
    """Return a text that can be a name.

    Parameters
    ----------
    text : str
        Name of a node, network, deployment or model, as it was written.

    Raises
    ------
    ValueError
        With what was seen and what is expected, when it cannot be one.
    """
    # Names become parts of file names, process names and run ids.
    if not _NAME.fullmatch(text):
        raise ValueError(f"{shown(text)}; expected a name of letters, digits, '-', '_' and '.'")
    return text


def _interface(text: str) -> str:
    # Linux keeps 16 bytes for an interface's name, one of them the terminator.
    if not 0 < len(text.encode()) < 16 or re.search(r"[/\s:]", text) or text in (".", ".."):
        raise ValueError(f"{shown(text)}; expected an interface name of at most 15 characters, such as eth0")
    return text


def _rdma_device(text: str) -> str:
    # The kernel's limit of such a name is 64 bytes; NCCL_IB_HCA has commas between them and its own signs before.
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}(:[1-9][0-9]?)?", text):
        raise ValueError(f"{shown(text)}; expected an RDMA device such as rocep1s0f0, or with its port mlx5_0:1")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError(f"{shown(text)}; expected a variable's name such as NCCL_DEBUG")
    return text


def _mac(text: str) -> str:
    if not _MAC.fullmatch(text.lower()):
        raise ValueError(f'{shown(text)}; expected a MAC address such as "02:77:00:00:00:10"')
    if int(text[:2], 16) & 1 or not int(text.replace(":", ""), 16):
        raise ValueError(f"{shown(text)}; expected the MAC address of one interface, not of a group or of none")
    return text.lower()


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError:
        raise ValueError(f"{shown(text)}; expected an IPv4 address such as 10.77.0.10") from None


def _subnet(text: str) -> str:
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError:
        network = None
    if network is None or network.prefixlen > 30 or "/" not in text:
        try:
            hint = str(ipaddress.IPv4Interface(text).network)
        except ValueError:
            hint = "10.77.0.0/24"
        hint = "10.77.0.0/24" if hint.endswith(("/31", "/32")) else hint
        raise ValueError(f"{shown(text)}; expected an IPv4 subnet of at most 30 bits such as {hint}")
    return str(network)


def _quantity(dimension: Dimension, whole: bool) -> list[Any]:
    units = "|".join(re.escape(unit) for unit in dimension.units)
    schema = {
        "type": "string",
        "pattern": rf"^\s*\+?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{{1,3}})?\s*({units})\s*$",
        "examples": [dimension.example],
        "title": dimension.noun.removeprefix("a "),
    }
    return [BeforeValidator(dimension.parse_whole if whole else dimension.parse), WithJsonSchema(schema)]


def with_unit(text: str, alias: str, description: str) -> Any:
    """Return a field whose default is written with its unit, as in a profile.

    Parameters
    ----------
    text
        The default, as `1 s` or `10 Hz`.
    alias
        The key in the profile, without a unit in it.
    description
        For the reference.
    """
    return Field(default=text, validate_default=True, alias=alias, description=description)


_size, _rate = _quantity(SIZE, whole=True), _quantity(RATE, whole=False)
_duration, _frequency = _quantity(DURATION, whole=False), _quantity(FREQUENCY, whole=False)
Size = Annotated[int, _size[0], _size[1]]
Rate = Annotated[float, _rate[0], _rate[1]]
Duration = Annotated[float, _duration[0], _duration[1]]
Frequency = Annotated[float, _frequency[0], _frequency[1]]
Name = Annotated[str, AfterValidator(name_text), Field(json_schema_extra={"title": "name"})]
HostName = Annotated[str, AfterValidator(_host_name), Field(json_schema_extra={"title": "DNS label"})]
InterfaceName = Annotated[str, AfterValidator(_interface), Field(json_schema_extra={"title": "interface name"})]
RdmaDevice = Annotated[str, AfterValidator(_rdma_device), Field(json_schema_extra={"title": "RDMA device"})]
Architecture = Literal["x86_64", "aarch64"]
VariableName = Annotated[str, AfterValidator(_variable), Field(json_schema_extra={"title": "variable"})]
MacAddress = Annotated[str, AfterValidator(_mac), Field(json_schema_extra={"title": "MAC address"})]
Address = Annotated[str, AfterValidator(_address), Field(json_schema_extra={"title": "IPv4 address"})]
Subnet = Annotated[str, AfterValidator(_subnet), Field(json_schema_extra={"title": "IPv4 subnet"})]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]
