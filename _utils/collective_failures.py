"""
Name what ends ranks that talk to each other: NCCL, RCCL, Gloo, oneCCL, and torch's store and watchdog. Rules as data.
"""

from failure_reasons import Rank, Rule

LOG = "cluster logs NODE -n 200"
OTHER = "cluster status"
LINKS = "cluster probe --only links"
ON_NODE = "cluster salt -- MINION cmd.run "
_MEMLOCK = "'ulimit -l; grep -r memlock /etc/security /etc/systemd'"

RULES = (
    # NCCL and RCCL: what they warn of names the call; torch only repeats the last error.
    Rule(
        "nccl_shared_memory_full",
        Rank.CAUSE,
        (
            r"Error while creating shared memory segment (?P<file>\S+) \(size (?P<size>\d+)\)(?:, error: (?P<why>[^\n(]*))?",
            r"(?:Error: )?failed to extend (?P<file>\S+) to (?P<size>\d+) bytes, error: No space left on device",
            r"Call to (?:posix_fallocate|ftruncate|fallocate) failed(?: *: *| with error )No space left on device",
            r"Failed to (?:create|allocate) shared memory segment.*?size (?P<size>\d+)",
            r"(?P<file>/dev/shm/nccl-\S+).*?No space left on device",
        ),
        "/dev/shm is too small for NCCL's segment[ of {size:bytes}][ ({file})]: give the node or container more shared memory "
        "(size= of its mount, --shm-size)",
        (ON_NODE + "'df -h /dev/shm'",),
    ),
    Rule(
        "rdma_memory_lock",
        Rank.CAUSE,
        (
            r"Call to (?P<call>ibv_(?:reg_mr\w*|create_\w+|alloc_\w+)) failed(?: with)?(?: error)?(?: 12)? Cannot allocate memory",
            r"libibverbs: Warning: RLIMIT_MEMLOCK is (?P<limit>\d+) bytes",
            r"fi_mr_reg\w*.*?Cannot allocate memory",
            r"[Mm]emory registration failed.*?(?:Cannot allocate memory|ENOMEM)",
        ),
        "the locked-memory limit is too low for RDMA[ ({call} got no memory)][ ({limit:bytes})]: raise ulimit -l to unlimited "
        "for the worker (LimitMEMLOCK=infinity, --ulimit memlock=-1)",
        (ON_NODE + _MEMLOCK,),
    ),
    Rule(
        "rdma_call_failed",
        Rank.CAUSE,
        (
            r"Call to (?P<call>ibv_\w+) failed(?: with)?(?: error)? (?P<why>[^,\n]+?)(?:, on dev (?P<device>[^,\s]+))"
            r"(?:.*?local GID (?:index (?P<index>\d+))?)?(?:.*?remote GID (?P<peer>\S+))?$",
            r"Call to (?P<call>ibv_\w+) failed(?:(?: with)?(?: error)? (?P<why>[^,\n]+))?",
        ),
        "NCCL's call {call} failed[: {why}][, on device {device}][, towards {peer}]; the two ends of an RDMA link do not reach "
        "each other: compare the GID index (NCCL_IB_GID_INDEX[, here {index}]), addresses and cables, or let NCCL use sockets "
        "(NCCL_IB_DISABLE=1)",
        (LINKS,),
    ),
    Rule(
        "rdma_completion_error",
        Rank.CAUSE,
        (
            r"NET/IB ?: ?(?:\S+ )?Got completion (?:from peer (?P<peer>\S+) )?with (?:status=|error )(?P<status>\d+).*?"
            r"vendor err(?:or)? (?P<vendor>\d+)",
            r"(?:NET/IB ?: ?)?(?:\S+ )?Got completion from peer (?P<peer>\S+) with status=(?P<status>\w+(?:\(\d+\))?)"
            r"(?:.*?vendor[ _]err(?:or)?[= ](?P<vendor>\d+))?",
        ),
        "NCCL's RDMA transfer failed[ with peer {peer}]: completion status {status}[ (vendor error {vendor})]; status 12 is a "
        "peer that does not answer: a cable, a switch, or a rank that ended",
        (LINKS,),
    ),
    Rule(
        "rdma_port_lost",
        Rank.CAUSE,
        (r"NET/IB ?: ?(?P<device>\S+) Got (?:non-)?(?:fatal )?async (?:fatal )?event ?: ?(?P<why>[^\n]*)",),
        "the RDMA device {device} lost its port: {why}; a cable, the switch, or the device",
        (LINKS,),
    ),
    Rule(
        "nccl_no_interface",
        Rank.CAUSE,
        (
            r"Bootstrap ?: ?no socket interface found",
            r"no socket interface found",
            r"Could not find (?:any )?interface.*?NCCL_SOCKET_IFNAME",
            r"No interface found in the same subnet as remote address (?P<address>\S+)",
            r"(?:\S+: )?can't find interface(?: (?P<interface>\S+))? to get host IP",
            r"Unable to find address for: (?P<interface>\S+)",
            r"Unable to find interface for: (?P<address>\S+)",
            r"(?:ifa != nullptr|Unable to resolve).*?(?:interface|address)(?: for)?:? (?P<interface>\S+)",
        ),
        "the interface that ranks are to talk over is not there[: {interface}][ ({address})]: {text}; it is set by the profile's "
        "link (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME, CCL_KVS_IFACE)",
        (ON_NODE + "'ip -brief address'",),
    ),
    Rule(
        "nccl_no_network",
        Rank.CAUSE,
        (
            r"NET/IB ?: ?No (?:IB )?device found",
            r"Failed to initialize (?:any )?NET plugin(?: (?P<plugin>\S+))?",
            r"Error: network (?P<plugin>\S+) not found",
            r"NET/Plugin: Failed to find ncclNetPlugin(?:_v\d+)? symbol",
        ),
        "NCCL was told to use a network that is not there[ ({plugin})]: {text}; RDMA devices are named by the link's rdma (NCCL_IB_HCA), "
        "and NCCL_NET or NCCL_NET_PLUGIN in the environment choose the network",
        (ON_NODE + "'ls /sys/class/infiniband'",),
    ),
    Rule(
        "nccl_cards_not_peers",
        Rank.CAUSE,
        (
            r"Cuda failure(?: \d+)? '(?P<why>peer access is not supported between these two devices|"
            r"peer mapping resources exhausted|invalid resource handle)'",
            r"(?P<why>peer access is not supported between these two devices)",
        ),
        "two cards of the node cannot reach each other's memory: {why}; NCCL_P2P_DISABLE=1 in the deployment's environment, and "
        "--disable-custom-all-reduce, go through main memory",
        ("cluster deploy DEPLOYMENT --set extra_arguments='[\"--disable-custom-all-reduce\"]'",),
    ),
    Rule(
        "nccl_same_card",
        Rank.CAUSE,
        (
            r"Duplicate GPU detected ?: ?rank (?P<one>\d+) and rank (?P<other>\d+) both on (?:CUDA )?device (?P<device>\w+)",
        ),
        "rank {one} and rank {other} took the same card (device {device}): each rank needs a card of its own "
        "(CUDA_VISIBLE_DEVICES, tensor_parallel of the deployment)",
        ("cluster profile check --deploy",),
    ),
    Rule(
        "nccl_versions_differ",
        Rank.CAUSE,
        (r"Mismatched NCCL version detected(?: ?: ?(?P<versions>.*))?", r"NCCL version mismatch"),
        "the nodes have different versions of NCCL[: {versions}]; every node needs the same engine environment",
        ("cluster apply engine",),
    ),
    Rule(
        "nccl_card_error",
        Rank.CAUSE,
        (
            r"(?:Cuda|CUDA|HIP|Hip) failure (?:(?P<code>\d+) )?'(?P<why>[^']+)'",
            r"Failed to CUDA (?:host)?(?:calloc|alloc|malloc)\w*(?: async)? (?P<size>\d+) bytes",
        ),
        "NCCL got an error from the card[: {why}][ (code {code})][: no memory for {size:bytes}]; with 'out of memory', leave NCCL "
        "more room beside the model",
        ("cluster deploy DEPLOYMENT --set gpu_memory_utilization=0.8",),
    ),
    Rule(
        "gloo_peer_gone",
        Rank.PEER,
        (
            r"\[[^\]]*gloo/[^\]]*\] (?P<why>(?:Connection closed by peer|Read error|Connection reset|Socket closed|writev?\b|"
            r"Application timeout)[^\n]*)",
            r"(?:\[[^\]]*gloo/[^\]]*\] )?(?P<why>Timed out waiting (?P<limit>\d+) ?ms for (?:recv|send)[^\n]*)",
            r"Gloo connectFullMesh failed with (?P<why>[^\n]*)",
            r"SO_ERROR: (?P<why>[^\n]*)",
            r"(?P<why>Connect timeout \[[^\n]*)",
            r"(?:\[[^\]]*gloo/[^\]]*\] )?(?P<why>connect \[[^\n]*)",
        ),
        "the other rank could not be reached: {why}; it ended first, or the link between them is down",
        (OTHER,),
        "exception",
    ),
    Rule(
        "messages_differ",
        Rank.CAUSE,
        (
            r"\[enforce fail at [^\]]*gloo/[^\]]*\] op\.(?:preamble\.length|nbytes)[^\n]*?\. (?P<one>\d+) vs (?P<other>\d+)",
            r"Detected mismatch between collectives on ranks[^\n]*",
            r"(?:Message truncated|Truncated message)[^\n]*",
        ),
        "ranks sent each other messages of different sizes[: {one} and {other} bytes]: they do not run the same model, settings "
        "or version; every node needs the same of all three",
        ("cluster apply engine",),
    ),
    Rule(
        "nccl_peer_gone",
        Rank.PEER,
        (
            r"(?:bootstrap\w*: ?)?Timeout waiting for (?:connection from )?(?P<peer>rank \d+|peer \S+)",
            r"(?:socket\w+|Net(?:work)?|recv|send)\w*: ?Connection closed by (?:remote )?peer (?P<peer>[^\s.]\S*)",
            r"ncclRemoteError: (?P<why>.*)",
            r"Accept(?:ing)? .*?failed",
            r"(?:socketStartConnect|socketPollConnect|socketFinalizeConnect|Connect): (?:Connect to |connect to )?"
            r"(?:\w+ )?(?P<peer>\S+).*?(?:failed|returned|timed out|refused|No route to host)",
            r"remote process exited or there was a network error",
            r"Connection closed by (?:remote )?peer(?: (?P<peer>\S+))?",
        ),
        "the other rank could not be reached[ ({peer})]: {text}; it ended first, or the link between them is down",
        (OTHER,),
    ),
    Rule(
        "collective_timeout",
        Rank.PEER,
        (
            r"Watchdog caught collective operation timeout: \w+\((?:.*?OpType=(?P<operation>\w+))?"
            r"(?:.*?Timeout\(ms\)=(?P<limit>\d+))?",
            r"Some NCCL operations have failed or timed out",
        ),
        "[the collective {operation} did not end within {limit:milliseconds}: ]a rank waited in a collective for another that "
        "did not come; look at what the other ranks did then",
        (OTHER,),
    ),
    Rule(
        "nccl_error",
        Rank.SYMPTOM,
        (
            r"NCCL error:? (?:in: \S+ )?(?P<kind>unhandled (?:system|cuda|hip) error|internal error|invalid (?:usage|argument))"
            r"(?:.*?Last error:\s*(?P<last>[^\n]+))?",
            r"nccl(?P<kind>SystemError|InternalError|InvalidUsage|InvalidArgument|UnhandledCudaError)\b"
            r"(?:.*?Last error:\s*(?P<last>[^\n]+))?",
            r"RCCL error:? (?P<kind>[^\n(]+)",
            r"NCCL error(?:: | in )(?P<kind>[^\n(]+)",
        ),
        "NCCL: {kind}[: {last}][: {library}]; its own lines say which call, device and peer: they come with NCCL_DEBUG=WARN in "
        "the environment of the accelerator's entry in the engine map",
        (LOG,),
    ),
    # torch's store, where ranks meet.
    Rule(
        "store_name_unknown",
        Rank.CAUSE,
        (
            r"The client socket has failed to connect to any network address of \((?P<host>[^,)]+), (?P<port>\d+)\)"
            r".*?gai error: -\d+ - (?P<why>[^)]*)",
        ),
        "the host {host}, where ranks meet (port {port}), has no address on this node: {why}",
        (ON_NODE + "'cat /etc/hosts'",),
    ),
    Rule(
        "rank_missing",
        Rank.PEER,
        (
            r"[Ww]ait timeout after (?P<limit>\d+) ?ms(?:, keys: (?P<keys>\S+))?",
            r"Timed out after (?P<seconds>\d+) seconds waiting for clients\. (?P<here>\d+)/(?P<all>\d+) clients joined",
            r"The client socket has timed out after (?P<limit>\d+) ?ms while trying to connect to \((?P<host>[^)]+)\)",
            r"The client socket has failed to connect to (?:any network address of )?\(?(?P<host>[^)\n]+)\)?",
            r"(?:TCPStore|store).*?(?:[Ss]ocket Timeout|timed out)(?:.*?after (?P<limit>\d+) ?ms)?",
            r"Timed out initializing process group in store based barrier on (?P<here_rank>rank:? \d+).*?world_size=(?P<all>\d+), "
            r"worker_count=(?P<here>\d+)",
            r"Socket Timeout",
            r"Rank \d+ successfully reached monitoredBarrier, but received errors while waiting for send/recv from rank \d+",
            r"Ranks? [\d, ]+ failed to pass monitoredBarrier(?: in (?P<limit>\d+) ms)?",
        ),
        "the other rank did not come[ within {limit:milliseconds}][ within {seconds:seconds}][ ({here} of {all} joined)]"
        "[ to {host}]: it did not start, ended before, or cannot be reached over the deployment's link",
        (OTHER,),
        "exception",
    ),
    Rule(
        "store_lost",
        Rank.PEER,
        (
            r"(?:failed to recv, got 0 bytes|Connection was likely closed\. Did the remote server shutdown or crash)",
            r"(?:sendBytes|recvValue|recvVector|recvBytes) failed on",
            r"Broken pipe",
        ),
        "the rank where all meet is gone: the first node's worker ended before this one",
        (OTHER,),
        "exception",
        "Dist\\w*Error|RuntimeError",
    ),
    # oneCCL.
    Rule(
        "oneccl_no_provider",
        Rank.CAUSE,
        (
            r"(?:atl_ofi\w*: )?fi_getinfo error: ret (?P<code>-?\d+), providers 0",
            r"(?:\w+: )?can't find suitable provider",
            r"fi_getinfo.*?(?:ret|error)[ :]*-61",
            r"could not (?:find|initialize) any (?:suitable )?(?:provider|transport)",
        ),
        "oneCCL found no libfabric provider[ (fi_getinfo ended with {code})]: name one that is there (FI_PROVIDER=tcp, "
        "FI_PROVIDER_PATH of the engine's environment) in the environment of the accelerator's entry in the engine map",
        (ON_NODE + "'fi_info -l'",),
    ),
    Rule(
        "oneccl_card_error",
        Rank.CAUSE,
        (
            r"ze error at (?P<call>\w+), code: (?P<code>\w+)",
            r"(?P<call>ze\w+)[^\n]*?(?P<code>ZE_RESULT_ERROR_\w+)",
        ),
        "oneCCL: the card's driver refused {call} with {code}",
        (ON_NODE + "'dmesg | grep -E \"i915|xe\" | tail'",),
    ),
    Rule(
        "oneccl_card_handles",
        Rank.CAUSE,
        (
            r"(?:\S+ )?fill_device_fds.*?(?P<why>open failed[^\n]*)",
            r"(?:oneCCL: )?(?:\S+ )?init_device_fds.*?(?P<why>opendir failed[^\n]*)",
            r"(?:\S+ )?\w*: EXCEPTION: (?P<why>pidfd_\w+[^\n]*)",
        ),
        "oneCCL may not open the card to share its memory between ranks ({why}): /dev/dri is missing or not permitted; "
        "CCL_ZE_IPC_EXCHANGE=sockets does without",
        (ON_NODE + "'ls -l /dev/dri'",),
    ),
    Rule(
        "oneccl_peer_gone",
        Rank.PEER,
        (
            r"(?:sendmsg_fd|recvmsg_fd|kvs|pmi)\w*.*?(?:Broken pipe|Connection (?:reset|refused)|timed? ?out|failed)",
            r"internal_kvs.*?(?:connection|connect).*?(?:failed|refused|timed out)",
        ),
        "the other rank could not be reached (oneCCL): {text}",
        (OTHER,),
        "line",
    ),
    Rule(
        "oneccl_peer_gone",
        Rank.PEER,
        (r"oneCCL: (?:internal_kvs|kvs|pmi)\S* \w+: EXCEPTION: [^\n]*?(?:connect|refused|timed? ?out)[^\n]*",),
        "the other rank could not be reached (oneCCL): {text}",
        (OTHER,),
        "exception",
    ),
    Rule(
        "oneccl_error",
        Rank.SYMPTOM,
        (
            r"oneCCL: (?P<where>\S+) (?P<call>\w+): EXCEPTION: (?P<why>[^\n]*)",
            r"(?:init_transport|initialize ATL)[^\n]*(?P<why>failed[^\n]*)",
        ),
        "oneCCL: {why}[ (in {call})][: {library}]; CCL_LOG_LEVEL=info in the environment of the accelerator's entry in the "
        "engine map says more",
        (LOG,),
        "exception",
    ),
)
