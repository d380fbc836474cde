"""Say what goes into a pack beside Python packages, and what is left out of them."""

# Programs that a lab runs on the machine and in its nodes -> Debian package. Each package is unpacked with all the
# libraries it needs, the C library too, so that it hangs on nothing of the machine's.
TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nft": "nftables",
    "iperf3": "iperf3",
    "ping": "iputils-ping",
    "tini": "tini",
    "openssl": "openssl",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
}
# Of an environment: nothing reads these where it runs.
LEFT_OUT = (
    "bin/python*",
    "bin/pip*",
    "bin/activate*",
    "bin/Activate*",
    "include",
    "lib64",
    "pyvenv.cfg",
    "share/man",
    "**/__pycache__",
    "lib/python3*/site-packages/pip",
    "lib/python3*/site-packages/pip-*",
    # What the machine has is found there, not here.
    "lib/python3*/site-packages/machine.pth",
)
# Of the control environment: tools of a developer's.
CONTROL_LEFT_OUT = ("lib/python3*/site-packages/libcloud", "lib/python3*/site-packages/Cryptodome/SelfTest")
# Of an engine, by its entry of the engine map: parts for other cards, and programs beside the server.
ENGINE_LEFT_OUT = {
    "cuda-lab": (
        # Hopper's attention is FlashAttention 3's.
        "lib/python3*/site-packages/vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
        "lib/python3*/site-packages/vllm/vllm-rs",
        "lib/python3*/site-packages/vllm/third_party/fmha_sm100",
    ),
}
# Of this project: what runs nothing.
PROJECT_LEFT_OUT = ("doc/", "tests/data/", ".ci/")
