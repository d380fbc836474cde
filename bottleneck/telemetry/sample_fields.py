"""The order of the numbers in a sample's lists, as the sampler writes them (salt/sampler/files/machine.py).

On its own, so that the process which only exports them needs no NumPy.
"""

LINK_FIELDS = (
    "receive_bytes",
    "transmit_bytes",
    "receive_packets",
    "transmit_packets",
    "receive_errors",
    "transmit_errors",
    "receive_dropped",
    "transmit_dropped",
)
CORE_FIELDS = ("busy", "user", "system", "idle", "iowait", "steal")
